"""The control socket: what operators ask of the fleet, and what they are told.

A UNIX socket of mode 0600; the peer's user is checked besides. The fleet's own tasks never wait for a client: whoever does
not read loses its connection, not the fleet its pace.
"""

from __future__ import annotations

import fnmatch
import logging
import os
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
from protocol.errors import BadRequest, Busy, Forbidden, LineTooLong, NotFound, ProtocolError, UnknownType
from protocol.framing import LineBuffer
from protocol.messages import Request
from supervisor.config import Loaded
from supervisor.fleet.keeper import Command, Keeper
from supervisor.fleet.lifecycle import ANSWERING, State
from supervisor.fleet.registry import Registry
from supervisor.places import private_folder
from supervisor.team.chat import Member, TeamQuestion, ask_team

logger = logging.getLogger("chorus.supervisor")

MAX_LINE = 1_048_576
TEAM_CHATS = 4  # run for others at once; more would take time from the health checks
GIVE_UP_AFTER = 120.0  # seconds a command waits for one specialist
SETBACK = 0.5  # a pause longer than this before the next try is an answer to whoever waits for a start
WRITE_WITHIN = 30.0  # seconds a client has to take a line


class Fleet:
    """The keepers and what can be asked of them together. `stop` set means that the supervisor goes down."""

    def __init__(self, registry: Registry, keepers: dict[str, Keeper], stop: anyio.Event, loaded: Loaded) -> None:
        self.registry = registry
        self.keepers = keepers
        self.stop = stop
        self.loaded = loaded
        self.grace: float | None = None
        self.down = anyio.Event()
        self.team_chats = anyio.CapacityLimiter(TEAM_CHATS)

    def resolve(self, asked: list[str] | None) -> list[str]:
        """Names, aliases and globs into names, in the roster's order; raises NotFound with the nearest ones."""
        known = self.registry.names
        if asked is None or asked == ["all"]:
            return known
        chosen: set[str] = set()
        for one in asked:
            found = fnmatch.filter(known, spelling.canonical(one))
            if not found:
                near = spelling.near(one, known)
                hint = f"did you mean {' or '.join(near)}?" if near else f"the team is {', '.join(known)}"
                raise NotFound(f"there is no specialist {one!r}: {hint}")
            chosen.update(found)
        return [name for name in known if name in chosen]

    async def command(self, request: messages.Named, names: list[str]) -> list[Outcome]:
        """Carries out start, stop, restart or drain for some, side by side; rolling restarts one after the other."""
        outcomes: list[Outcome] = []

        async def one(name: str) -> None:
            outcomes.append(await self._command_one(request, name))

        if isinstance(request, messages.Restart) and request.rolling:
            for name in names:
                await one(name)
        else:
            async with anyio.create_task_group() as group:
                for name in names:
                    group.start_soon(one, name)
        return outcomes

    async def take_down(self) -> None:
        """Stops everybody in good order and returns when nobody runs."""
        self.registry.set_state("stopping")
        for keeper in self.keepers.values():
            keeper.tell(Command("stop", "the team goes down", self.grace))
        await self.registry.wait_for(lambda: all(one.state is State.STOPPED for one in self.keepers.values()))
        self.registry.set_state("down")
        self.down.set()

    async def _command_one(self, request: messages.Named, name: str) -> Outcome:
        keeper = self.keepers.get(name)
        if keeper is None:
            return Outcome(name, error="the supervisor is still coming up: try again")
        old = keeper.pid
        began = anyio.current_time()
        match request:
            case messages.Start():
                keeper.tell(Command("start", "asked to start"))
            case messages.Stop():
                keeper.tell(Command("stop", "asked to stop", request.grace))
            case messages.Restart():
                keeper.tell(Command("restart", "asked to restart"))
            case messages.Drain():
                keeper.tell(Command("drain", "asked to drain"))
        if not getattr(request, "wait", True):
            return Outcome(name, old_pid=old)
        await anyio.lowlevel.checkpoint()  # the keeper takes its inbox before anybody looks at what it did
        with anyio.move_on_after(GIVE_UP_AFTER):
            error = await self._outcome(request, keeper, old)
            took = round((anyio.current_time() - began) * 1000, 1)
            down_ms = took if isinstance(request, messages.Restart) else None
            return Outcome(name, old_pid=old, new_pid=keeper.pid, down_ms=down_ms, error=error)
        return Outcome(name, old_pid=old, new_pid=keeper.pid, error=f"still {keeper.state.value}: see chorus status")

    async def _outcome(self, request: messages.Named, keeper: Keeper, old: int | None) -> str | None:
        """Waits until a command is carried out; returns why it cannot be, or None."""
        if isinstance(request, messages.Stop):
            await self.registry.wait_for(lambda: keeper.state is State.STOPPED and keeper.pid is None)
            return None
        if isinstance(request, messages.Drain):
            if keeper.pid is None:
                return f"{keeper.name} is not running"
            await self.registry.wait_for(lambda: keeper.state is not State.READY and keeper.state is not State.DEGRADED)
            return None if keeper.state is State.DRAINING else f"{keeper.name} is {keeper.state.value}"

        def settled() -> bool:
            if keeper.state in ANSWERING:
                return not isinstance(request, messages.Restart) or keeper.pid != old
            return self._setback(keeper)

        await self.registry.wait_for(settled)
        if keeper.state in ANSWERING:
            return None
        status = self.registry[keeper.name]
        return f"{status.last_error or keeper.state.value}; {status.remedy or 'see chorus status'}"

    def _setback(self, keeper: Keeper) -> bool:
        return keeper.state is State.FAILED or (keeper.state is State.BACKING_OFF and keeper.due_in() > SETBACK)


class Control:
    """The socket itself. `run` serves until cancelled and removes nothing but what it made."""

    def __init__(self, path: Path, fleet: Fleet) -> None:
        self.path = path
        self.fleet = fleet

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        private_folder(self.path.parent)
        self.path.unlink(missing_ok=True)  # a stale one: the lock says that nobody else is there
        listener = await anyio.create_unix_listener(os.fspath(self.path), mode=0o600)
        async with listener:
            task_status.started()
            await listener.serve(self._serve)

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                await _Caller(stream, self.fleet).serve()
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # gone: whatever it asked for goes on
            except Exception:  # the fence: one client's trouble is a log line
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
                fleet.grace = request.grace
                fleet.stop.set()
                await self._with_progress(request, fleet.registry.names, fleet.down.wait)
                await self._result(request, [Outcome(name) for name in fleet.registry.names])
            case messages.TeamChat():
                await self._team_chat(request)
            case messages.Named():
                names = fleet.resolve(request.names)
                outcomes: list[Outcome] = []

                async def work() -> None:
                    outcomes.extend(await fleet.command(request, names))

                await self._with_progress(request, names, work)
                await self._result(request, outcomes)

    async def _watch(self, request: messages.Watch) -> None:
        async with self._fleet.registry.watch() as watcher:
            async for change in watcher.changes():
                await self._send(msgspec.structs.replace(change, request_id=request.request_id))

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
