"""The control socket: what operators ask of the fleet, and what they are told.

A UNIX socket of mode 0600; the peer's user is checked besides. The fleet's own tasks never wait for a client: whoever does
not read loses its connection, not the fleet its pace.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec

from protocol import control as messages
from protocol import names as spelling
from protocol.codec import BadLine, encode, error_reply, parse_json
from protocol.control import CONTROL_TYPES, Outcome, Progress, Result, SpecialistStatus, decoders
from protocol.errors import BadRequest, Busy, Forbidden, LineTooLong, ProtocolError, UnknownType
from protocol.framing import LineBuffer
from protocol.messages import Request
from supervisor.config import Loaded
from supervisor.fleet.inbox import Command
from supervisor.fleet.keeper import Keeper
from supervisor.fleet.lifecycle import ANSWERING, RUNNING, State, Wanted
from supervisor.fleet.registry import Registry
from supervisor.places import private_folder
from supervisor.team.chat import Member, TeamQuestion, ask_team

logger = logging.getLogger("chorus.supervisor")

MAX_LINE = 1_048_576
TEAM_CHATS = 4  # run for others at once; more would take time from the health checks
GIVE_UP_AFTER = 120.0  # seconds a command waits for one specialist
SETBACK = 0.5  # a pause longer than this before the next try is an answer to whoever waits for a start
LAST_WORDS = 1.0  # seconds for those who wait for the end to be told
LOOK_EVERY = 1.0  # seconds between looks at a client that asks nothing more: is it still there?
RETRY_ACCEPT_AFTER = 0.1
WRITE_WITHIN = 30.0  # seconds a client has to take a line


class Fleet:
    """The keepers and what can be asked of them together. `stop` set means that the supervisor goes down.

    `errands` is the control socket's task group, in which commands run: it is there as long as they can be asked.
    """

    errands: anyio.abc.TaskGroup

    def __init__(self, registry: Registry, keepers: dict[str, Keeper], stop: anyio.Event, loaded: Loaded) -> None:
        self.registry = registry
        self.keepers = keepers
        self.stop = stop
        self.loaded = loaded
        self.grace: float | None = None
        self.down = anyio.Event()
        self.told: list[anyio.Event] = []  # set when somebody who asked for the end has heard of it
        self.team_chats = anyio.CapacityLimiter(TEAM_CHATS)

    def resolve(self, asked: list[str] | None) -> list[str]:
        """Names, aliases and globs into names, in the roster's order; raises NotFound with the nearest ones."""
        return spelling.chosen(asked, self.registry.names)

    async def command(self, request: messages.Named, names: list[str]) -> list[Outcome]:
        """Carries out start, stop, restart or drain for some, side by side; rolling restarts one after the other."""
        outcomes: list[Outcome] = []
        done = anyio.Event()

        async def one(name: str) -> None:
            outcomes.append(await self._command_one(request, name))

        async def work() -> None:
            if isinstance(request, messages.Restart) and request.rolling:
                for name in names:
                    await one(name)
            else:
                async with anyio.create_task_group() as group:
                    for name in names:
                        group.start_soon(one, name)
            done.set()

        # Not in the client's own task: what it asked for goes on when it leaves.
        self.errands.start_soon(work)
        await done.wait()
        return outcomes

    def go_down(self, grace: float | None) -> None:
        """Has the supervisor go down; a second time with less patience."""
        if self.stop.is_set() and grace is not None:
            for keeper in self.keepers.values():
                keeper.tell(Command("stop", "the team goes down at once", grace), urgent=True)
        self.grace = grace
        self.stop.set()

    async def take_down(self) -> None:
        """Stops everybody in good order and returns when nobody runs."""
        self.registry.set_state("stopping")
        commands = [Command("stop", "the team goes down", self.grace) for _ in self.keepers]
        for keeper, command in zip(self.keepers.values(), commands, strict=True):
            keeper.tell(command, urgent=True)
        for command in commands:
            await command.taken.wait()
        await self.registry.wait_for(lambda: all(one.is_gone for one in self.keepers.values()))

    def went_down(self) -> None:
        """Says that nobody runs any more."""
        self.registry.set_state("down")
        self.down.set()

    async def _command_one(self, request: messages.Named, name: str) -> Outcome:
        keeper = self.keepers.get(name)
        if keeper is None:
            return Outcome(name, error="the supervisor is still coming up: try again")
        old = keeper.pid
        began = anyio.current_time()
        command = _command(request)
        try:
            keeper.tell(command)
        except Busy as busy:
            return Outcome(name, old_pid=old, error=busy.sentence)
        if not getattr(request, "wait", True):
            return Outcome(name, old_pid=old)
        with anyio.move_on_after(GIVE_UP_AFTER):
            await command.taken.wait()
            error = await self._outcome(request, keeper, old)
            took = round((anyio.current_time() - began) * 1000, 1)
            down_ms = took if isinstance(request, messages.Restart) else None
            return Outcome(name, old_pid=old, new_pid=keeper.pid, down_ms=down_ms, error=error)
        return Outcome(name, old_pid=old, new_pid=keeper.pid, error=f"still {keeper.state.value}: see chorus status")

    async def _outcome(self, request: messages.Named, keeper: Keeper, old: int | None) -> str | None:
        """Waits until a command that was taken up is carried out; returns why it cannot be, or None."""
        wanted = _WANTED[type(request)]
        if isinstance(request, messages.Drain) and keeper.wanted is not wanted:
            return f"{keeper.name} is not running"
        if isinstance(request, messages.Restart) and keeper.pid == old and keeper.state in RUNNING:
            return self.registry[keeper.name].last_error

        def is_done() -> bool:
            if wanted is Wanted.DOWN:
                return keeper.is_gone
            return keeper.state in (ANSWERING if wanted is Wanted.UP else (State.DRAINING,))

        await self.registry.wait_for(
            lambda: is_done() or keeper.wanted is not wanted or keeper.inbox.is_closed or self._setback(keeper)
        )
        if is_done():
            return None
        if keeper.inbox.is_closed:
            return "the fork server was lost and the team is started anew: try again"
        if keeper.wanted is not wanted:
            return f"somebody asked for something else meanwhile: it is to be {keeper.wanted.value}"
        status = self.registry[keeper.name]
        return f"{status.last_error or keeper.state.value}; {status.remedy or 'see chorus status'}"

    def _setback(self, keeper: Keeper) -> bool:
        return keeper.state is State.FAILED or (keeper.state is State.BACKING_OFF and keeper.due_in() > SETBACK)


_WANTED: dict[type[Request], Wanted] = {
    messages.Start: Wanted.UP,
    messages.Stop: Wanted.DOWN,
    messages.Restart: Wanted.UP,
    messages.Drain: Wanted.DRAINED,
}


def _command(request: messages.Named) -> Command:
    match request:
        case messages.Start():
            return Command("start", "asked to start")
        case messages.Stop():
            return Command("stop", "asked to stop", request.grace)
        case messages.Restart():
            return Command("restart", "asked to restart")
        case messages.Drain():
            return Command("drain", "asked to drain")
    raise AssertionError(f"{type(request).__name__} is no command")


class Control:
    """The socket itself. `run` serves until cancelled and removes nothing but what it made."""

    def __init__(self, path: Path, fleet: Fleet) -> None:
        self.path = path
        self.fleet = fleet

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        private_folder(self.path.parent)
        self.path.unlink(missing_ok=True)  # a stale one: the lock says that nobody else is there
        listener = await anyio.create_unix_listener(os.fspath(self.path), mode=0o600)
        async with listener, anyio.create_task_group() as self.fleet.errands:
            task_status.started()
            while True:
                try:
                    await listener.serve(self._serve, self.fleet.errands)
                except OSError as error:
                    # anyio leaves the errors of accept(2) to us: out of descriptors, the supervisor must not fall.
                    logger.error("cannot accept a connection: %s; trying again", error.strerror)
                    await anyio.sleep(RETRY_ACCEPT_AFTER)

    async def tell_the_last(self) -> None:
        """Lets those who asked for the end hear that it came."""
        with anyio.move_on_after(LAST_WORDS):
            for told in self.fleet.told:
                await told.wait()

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                await _Caller(stream, self.fleet).serve()
            except* (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # gone: whatever it asked for goes on
            except* Exception:  # the fence: one client's trouble is a log line
                logger.exception("a control conversation failed")


class _Caller:
    """One client of the control socket; its requests are answered one after the other."""

    def __init__(self, stream: anyio.abc.SocketStream, fleet: Fleet) -> None:
        self._stream = stream
        self._fleet = fleet
        self._lines = LineBuffer(MAX_LINE)

    async def serve(self) -> None:
        if not self._is_allowed():
            await self._send(error_reply(Forbidden("this team belongs to another user of this machine"), None, None))
            return
        while True:
            try:
                line = self._lines.next_line()
            except LineTooLong as error:
                await self._send(error_reply(error, None, None))
                continue
            if line is None:
                try:
                    self._lines.feed(await self._stream.receive())
                except anyio.EndOfStream:
                    return
            elif line.strip():
                await self._answer(line)

    async def _answer(self, line: bytes) -> None:
        request: Request | None = None
        try:
            request = _decode(line)
            await self._carry_out(request)
        except BadLine as bad:
            await self._send(error_reply(bad.reason, bad.request_id, None))
        except ProtocolError as error:
            await self._send(error_reply(error, request.request_id if request else None, None))

    async def _carry_out(self, request: Request) -> None:
        fleet = self._fleet
        match request:
            case messages.Status():
                report = fleet.registry.report(fleet.resolve(request.names))
                await self._send(Result(request_id=request.request_id, ok=True, changed=[], failed=[], status=report))
            case messages.Watch():
                await self._watch(request)
            case messages.Shutdown():
                await self._shut_down(request)
            case messages.TeamChat():
                await self._team_chat(request)
            case messages.Named():
                names = fleet.resolve(request.names)
                outcomes: list[Outcome] = []

                async def work() -> None:
                    outcomes.extend(await fleet.command(request, names))

                await self._with_progress(request, names, work)
                await self._result(request, outcomes)

    async def _shut_down(self, request: messages.Shutdown) -> None:
        fleet = self._fleet
        told = anyio.Event()
        fleet.told.append(told)
        try:
            fleet.go_down(request.grace)
            await self._with_progress(request, fleet.registry.names, fleet.down.wait)
            await self._result(request, [Outcome(name) for name in fleet.registry.names])
        finally:
            told.set()

    async def _watch(self, request: messages.Watch) -> None:
        async with self._fleet.registry.watch() as watcher, anyio.create_task_group() as group:
            group.start_soon(self._until_gone)
            async for change in watcher.changes():
                await self._send(msgspec.structs.replace(change, request_id=request.request_id))

    async def _until_gone(self) -> None:
        """Raises BrokenResourceError when the client is gone, which nothing else shows while nothing changes.

        What a client says besides is dropped: a watch goes on until the connection ends.
        """
        try:
            while True:
                await self._stream.receive()
        except anyio.EndOfStream:
            pass  # perhaps it only asks nothing more: then the other direction is still open
        hung_up = select.poll()
        hung_up.register(self._stream.extra(anyio.abc.SocketAttribute.raw_socket), 0)
        while not hung_up.poll(0):  # noqa: ASYNC110 - the event loop does not tell a half-closed socket from a closed one
            await anyio.sleep(LOOK_EVERY)
        raise anyio.BrokenResourceError

    async def _with_progress(self, request: Request, names: list[str], work: Callable[[], Awaitable[object]]) -> None:
        """Does the work while its transitions are told."""
        async with self._fleet.registry.watch() as watcher, anyio.create_task_group() as group:

            async def tell() -> None:
                async for change in watcher.changes():
                    if isinstance(change, messages.Transition) and change.name in names:
                        await self._send(
                            Progress(
                                request_id=request.request_id,
                                name=change.name,
                                from_=change.from_,
                                to=change.to,
                                cause=change.cause,
                                pid=change.pid,
                            )
                        )

            group.start_soon(tell)
            await anyio.lowlevel.checkpoint()  # so that the snapshot is taken before the work begins
            await work()
            watcher.stop()  # what happened before this is still told

    async def _team_chat(self, request: messages.TeamChat) -> None:
        fleet = self._fleet
        names = fleet.resolve(request.names)
        try:
            fleet.team_chats.acquire_nowait()
        except anyio.WouldBlock:
            raise Busy(
                f"{TEAM_CHATS} team chats are under way: ask the specialists yourself, or wait",
                retry_after=1.0,
            ) from None
        try:
            members = [_member(fleet.registry[name]) for name in names]
            question = TeamQuestion(content=request.content, timeout=request.timeout, deadline=request.deadline)
            async with ask_team(members, question) as events:
                async for event in events:
                    await self._send(
                        messages.TeamEvent(request_id=request.request_id, event=msgspec.to_builtins(event))
                    )
        finally:
            fleet.team_chats.release()
        await self._result(request, [])

    async def _result(self, request: Request, outcomes: list[Outcome]) -> None:
        failed = [one for one in outcomes if one.error]
        changed = [one for one in outcomes if not one.error]
        await self._send(Result(request_id=request.request_id, ok=not failed, changed=changed, failed=failed))

    async def _send(self, message: msgspec.Struct) -> None:
        with anyio.move_on_after(WRITE_WITHIN) as patience:
            await self._stream.send(encode(message))
        if patience.cancelled_caught:
            raise anyio.BrokenResourceError

    def _is_allowed(self) -> bool:
        """Our own user and root. The socket's mode says the same; this holds where the mode was changed."""
        raw: socket.socket = self._stream.extra(anyio.abc.SocketAttribute.raw_socket)
        if not hasattr(socket, "SO_PEERCRED"):
            return True
        _pid, uid, _gid = struct.unpack("3i", raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return uid in (0, os.getuid())


def _member(status: SpecialistStatus) -> Member:
    return Member(status.name, status.host, status.port)


def _decode(line: bytes) -> Request:
    class Head(msgspec.Struct):
        type: str | None = None
        request_id: str | int | None = None

    try:
        head = parse_json(msgspec.json.Decoder(Head).decode, line)
    except ProtocolError as error:
        raise BadLine(error) from None
    decode = decoders.get(head.type or "")
    if decode is None:
        known = ", ".join(CONTROL_TYPES)
        reason = (
            UnknownType(f"unknown type {head.type!r}: known are {known}") if head.type else BadRequest("type: missing")
        )
        raise BadLine(reason, head.request_id)
    try:
        return parse_json(decode, line)
    except ProtocolError as error:
        raise BadLine(error, head.request_id) from None
