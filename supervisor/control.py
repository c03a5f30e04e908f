"""The control socket: what operators ask of the fleet, and what they are told.

A UNIX socket of mode 0600, or 0660 for a group that may control; the peer is checked besides. The fleet's own tasks never
wait for a client: whoever does not read loses its connection, not the fleet its pace.
"""

from __future__ import annotations

import logging
import os
import select
import socket
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
from protocol.shape import Mistake
from supervisor import peer
from supervisor.operations import TEAM_CHATS, Fleet
from supervisor.places import private_folder
from supervisor.reload import Reload
from supervisor.team import routing
from supervisor.team.chat import Member, TeamQuestion, ask_team

logger = logging.getLogger("chorus.supervisor")

MAX_LINE = 1_048_576
LAST_WORDS = 1.0  # seconds for those who wait for the end to be told
LOOK_EVERY = 1.0  # seconds between looks: is a client that asks nothing more still there, and our socket's file?
RETRY_ACCEPT_AFTER = 0.1
WRITE_WITHIN = 30.0  # seconds a client has to take a line


class Control:
    """The socket itself. `run` serves until cancelled; a socket whose file is removed is made anew."""

    def __init__(self, path: Path, fleet: Fleet) -> None:
        self.path = path
        self.fleet = fleet

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        listener = await self._listen()
        async with anyio.create_task_group() as self.fleet.errands:
            task_status.started()
            while True:
                async with listener, anyio.create_task_group() as accepting:
                    accepting.start_soon(self._accept, listener)
                    await self._until_removed()
                    accepting.cancel_scope.cancel()
                logger.warning("the control socket was removed and is made anew: %s", self.path)
                listener = await self._listen_again()

    async def _listen(self) -> anyio.abc.SocketListener:
        private_folder(self.path.parent)
        self.path.unlink(missing_ok=True)  # a stale one: the lock says that nobody else is there
        listener = await anyio.create_unix_listener(os.fspath(self.path), mode=0o600)
        if self.fleet.loaded.control_gid is not None:
            peer.open_to(self.fleet.loaded.control_gid, self.path)
        return listener

    async def _listen_again(self) -> anyio.abc.SocketListener:
        """As soon as it can be: the folder that a logout removes comes back with the next login."""
        while True:
            try:
                return await self._listen()
            except OSError:
                await anyio.sleep(LOOK_EVERY)

    async def _until_removed(self) -> None:
        ours = self.path.stat().st_ino
        while True:
            await anyio.sleep(LOOK_EVERY)
            try:
                if self.path.stat().st_ino != ours:
                    return
            except OSError:
                return

    async def _accept(self, listener: anyio.abc.SocketListener) -> None:
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
        self._sending = anyio.Lock()  # progress and a plan are told by two tasks

    async def serve(self) -> None:
        raw: socket.socket = self._stream.extra(anyio.abc.SocketAttribute.raw_socket)
        if not peer.may_control(raw, self._fleet.loaded.control_gid):
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
            case messages.Reload():
                await self._reload(request)
            case messages.Shutdown():
                await self._shut_down(request)
            case messages.TeamChat():
                await self._team_chat(request)
            case messages.Route():
                await self._send(self._routed(request))
            case messages.Named():
                names = fleet.resolve(request.names)
                outcomes: list[Outcome] = []

                async def work() -> None:
                    outcomes.extend(await fleet.command(request, names))

                await self._with_progress(request, names, work)
                await self._result(request, outcomes)

    async def _reload(self, request: messages.Reload) -> None:
        fleet = self._fleet
        reading = Reload(fleet, request.dry_run)
        # As with commands: what was asked for goes on when the client leaves.
        fleet.errands.start_soon(reading.run)

        async def told() -> None:
            await reading.planned.wait()
            if reading.plan is not None and not request.dry_run:
                await self._send(messages.Planned(request_id=request.request_id, plan=reading.plan))
            await reading.done.wait()

        await self._with_progress(request, None, told)
        if reading.refused is not None:
            raise reading.refused
        await self._result(request, reading.outcomes, reading.plan)

    async def _shut_down(self, request: messages.Shutdown) -> None:
        fleet = self._fleet
        told = anyio.Event()
        fleet.told.append(told)
        try:
            fleet.go_down(request.grace)
            await self._with_progress(request, fleet.registry.everybody, fleet.down.wait)
            await self._result(request, [Outcome(name) for name in fleet.registry.everybody])
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

    async def _with_progress(
        self, request: Request, names: list[str] | None, work: Callable[[], Awaitable[object]]
    ) -> None:
        """Does the work while its transitions are told; those of all specialists where no names are given."""

        def is_told(name: str) -> bool:
            return name in names if names is not None else name != messages.HOUSE

        async with self._fleet.registry.watch() as watcher, anyio.create_task_group() as group:

            async def tell() -> None:
                async for change in watcher.changes():
                    if isinstance(change, messages.Transition) and is_told(change.name):
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
        asked = spelling.chosen(request.names, fleet.registry.names)
        try:
            fleet.team_chats.acquire_nowait()
        except anyio.WouldBlock:
            raise Busy(
                f"{TEAM_CHATS} team chats are under way: ask the specialists yourself, or wait",
                retry_after=1.0,
            ) from None
        try:
            members = [_member(one) for one in fleet.registry.specialists if one.name in asked]
            question = TeamQuestion(content=request.content, timeout=request.timeout, deadline=request.deadline)
            async with ask_team(members, question) as events:
                async for event in events:
                    await self._send(
                        messages.TeamEvent(request_id=request.request_id, event=msgspec.to_builtins(event))
                    )
        finally:
            fleet.team_chats.release()
        await self._result(request, [])

    def _routed(self, request: messages.Route) -> Result:
        fleet = self._fleet
        wrong: list[Mistake] = []
        if request.rules is not None:
            try:
                fleet.set_rules(routing.read(request.rules, fleet.registry.names))
            except routing.BadRules as error:
                wrong = error.mistakes
        rules = msgspec.to_builtins(fleet.rulebook.rules)
        return Result(request_id=request.request_id, ok=not wrong, changed=[], failed=[], rules=rules, mistakes=wrong)

    async def _result(self, request: Request, outcomes: list[Outcome], plan: messages.Plan | None = None) -> None:
        failed = [one for one in outcomes if one.error]
        changed = [one for one in outcomes if not one.error]
        ok = not failed and not (plan and plan.mistakes)
        await self._send(Result(request_id=request.request_id, ok=ok, changed=changed, failed=failed, plan=plan))

    async def _send(self, message: msgspec.Struct) -> None:
        with anyio.move_on_after(WRITE_WITHIN) as patience:
            async with self._sending:
                await self._stream.send(encode(message))
        if patience.cancelled_caught:
            raise anyio.BrokenResourceError


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
