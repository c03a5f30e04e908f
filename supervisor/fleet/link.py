"""The supervisor's end of the connection to the fork server."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
from msgspec.structs import replace

from protocol.framing import LineBuffer
from protocol.settings import ChildConfig, Place
from supervisor.errors import CannotStart, ForkServerLost
from supervisor.fleet import calls
from supervisor.fleet.calls import MOST_SOCKETS, Answered, Exited, Living, Process
from supervisor.fleet.copies import Copies

logger = logging.getLogger("chorus.supervisor")

ACCEPTED_WITHIN = 5.0  # seconds in which the backlog of a fork server that goes on has room for one more
GONE = "the process that holds the specialists' sockets is gone"


class _Pending:
    """A call that waits for its answer."""

    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.answer: Answered | None = None
        self.sockets: list[socket.socket] = []
        self._is_abandoned = False

    def take(self, answer: Answered, sockets: list[socket.socket]) -> None:
        self.answer = answer
        self.sockets = sockets
        self.answered.set()
        if self._is_abandoned:
            self.abandon()

    def abandon(self) -> None:
        """Nobody waits any more: closes what came, or what is still to come."""
        self._is_abandoned = True
        for one in self.sockets:
            one.close()


class Link:
    """Calls to the fork server. `on_exit` hears of every process that ends; `lost` is set when the fork server is gone.

    Every call raises ForkServerLost then. `copies` are those of its listeners, which outlive it.
    """

    def __init__(self, stream: anyio.abc.UNIXSocketStream, on_exit: Callable[[Exited], None], copies: Copies) -> None:
        self.copies = copies
        self._stream = stream
        self._socket: socket.socket = stream.extra(anyio.abc.SocketAttribute.raw_socket)
        self._on_exit = on_exit
        self._lines = LineBuffer(None)
        self._fds: deque[int] = deque()
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._quitting = False
        self._sending = anyio.Lock()
        self.lost = anyio.Event()

    async def run(self, *, task_status: anyio.abc.TaskStatus[Living] = anyio.TASK_STATUS_IGNORED) -> None:
        """Reads until the fork server is gone: then raises ForkServerLost, unless it was asked to quit.

        Started when it has said what lives.
        """
        try:
            while True:
                data, fds = await self._stream.receive_fds(65536, MOST_SOCKETS)
                self._fds.extend(fds)
                self._lines.feed(data)
                while (line := self._lines.next_line()) is not None:
                    report = calls.decode_report(line)
                    if isinstance(report, Living):
                        task_status.started(report)
                    else:
                        self._take(report)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            self.lost.set()
            for pending in self._pending.values():
                pending.answered.set()
        if not self._quitting:
            raise ForkServerLost(GONE)

    async def release(self, name: str) -> None:
        """Closes a name's listeners, here and in the fork server; processes that have them keep them."""
        self.copies.drop(name)
        await self._call(lambda number: calls.Release(number=number, name=name))

    async def lend(self, name: str) -> list[socket.socket]:
        """Copies of a name's listeners; the caller closes them."""
        pending = await self._call(lambda number: calls.Lend(number=number, name=name))
        return pending.sockets

    async def fork(self, config: ChildConfig) -> int:
        """Starts a process on its places and returns its pid; raises CannotStart."""
        has_copies = bool(self.copies.of(config.name))
        try:
            pending = await self._call(lambda number: calls.Fork(number=number, config=config, has_copies=has_copies))
        except CannotStart as error:
            if error.number != errno.EADDRINUSE:  # a new place may have been bound before that
                self.copies.drop(config.name)
            raise
        assert pending.answer is not None
        assert pending.answer.pid is not None
        if pending.sockets:
            self.copies.put(config.name, pending.sockets)
        return pending.answer.pid

    async def hold(self, name: str, sockets: list[socket.socket]) -> None:
        """Gives the fork server listeners that are bound already; they become our copies."""
        self.copies.put(name, sockets)
        places: list[Place] = [one.getsockname()[:2] for one in sockets]
        call = calls.Hold(number=0, name=name, places=places)
        await self._call(lambda number: replace(call, number=number), sockets)

    async def adopt(self, process: Process) -> None:
        """Has a process that lost its fork server taken on; raises CannotStart when it is gone."""
        await self._call(lambda number: calls.Adopt(number=number, process=process))

    async def ping(self) -> None:
        """Returns when the fork server has answered."""
        await self._call(lambda number: calls.Ping(number=number))

    async def signal(self, pid: int, number: int, *, group: bool = False) -> bool:
        """Signals a process of ours; False when it is gone already."""
        try:
            await self._call(lambda call: calls.Signal(number=call, pid=pid, signal=number, group=group))
        except CannotStart:
            return False
        return True

    async def noted(self, pid: int) -> None:
        """Says that the end of a process is on record, so that no later supervisor is told of it."""
        try:
            await self._call(lambda number: calls.Noted(number=number, pid=pid))
        except ForkServerLost:
            pass  # and what it remembered with it: perhaps it has just been asked to quit; `run` tells where it was not

    async def policy(self, *, stop_without_supervisor: bool) -> None:
        await self._call(lambda number: calls.Policy(number=number, stop_without_supervisor=stop_without_supervisor))

    async def quit(self) -> None:
        """Ends the fork server and, by force, what still runs."""
        self._quitting = True
        try:
            await self._call(lambda number: calls.Quit(number=number))
        except ForkServerLost:
            pass  # that is what was asked

    def _take(self, report: Answered | Exited) -> None:
        if isinstance(report, Exited):
            self._on_exit(report)
            return
        came = min(report.listeners, len(self._fds))
        sockets = [socket.socket(fileno=self._fds.popleft()) for _ in range(came)]
        if came < report.listeners:
            # We may open no more, so recvmsg(2) left some out. Some are of no use; whoever has none can ask again.
            logger.error("%d sockets cannot be had: out of descriptors", report.listeners - came)
            while sockets:
                sockets.pop().close()
        self._pending.pop(report.number).take(report, sockets)

    async def _call(self, make: Callable[[int], calls.AnyCall], sockets: Sequence[socket.socket] = ()) -> _Pending:
        number = next(self._numbers)
        pending = self._pending[number] = _Pending()
        try:
            if rest := self._sent_at_once(calls.line(make(number)), sockets):
                async with self._sending:  # a fork server that does not read lets calls queue up
                    await self._send(rest, sockets)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            self.lost.set()
        try:
            if not self.lost.is_set():
                await pending.answered.wait()
        except anyio.get_cancelled_exc_class():
            pending.abandon()  # its answer still comes, perhaps with sockets
            raise
        if pending.answer is None:
            raise ForkServerLost(GONE)
        if pending.answer.error is not None:
            raise CannotStart(pending.answer.errno or 0, pending.answer.error, pending.answer.port)
        return pending

    def _sent_at_once(self, line: bytes, sockets: Sequence[socket.socket]) -> bytes:
        """Sends what the kernel takes before anybody else has a turn, while a restart waits for it; returns the rest."""
        if sockets or self._sending.locked():
            return line
        try:
            return line[self._socket.send(line) :]
        except BlockingIOError:
            return line
        except OSError:
            raise anyio.BrokenResourceError from None

    async def _send(self, line: bytes, sockets: Sequence[socket.socket]) -> None:
        if sockets:
            await self._stream.send_fds(line, [one.fileno() for one in sockets])
        else:
            await self._stream.send(line)


@asynccontextmanager
async def connected(path: Path, on_exit: Callable[[Exited], None], copies: Copies) -> AsyncIterator[Link]:
    """A connection to the fork server that listens at `path`, closed at the end of the block."""
    try:
        with anyio.fail_after(ACCEPTED_WITHIN):
            stream = await anyio.connect_unix(os.fspath(path))
    except OSError as error:
        raise ForkServerLost(f"no fork server answers at {path} ({error.strerror or 'it does not accept'})") from None
    async with stream:
        yield Link(stream, on_exit, copies)
