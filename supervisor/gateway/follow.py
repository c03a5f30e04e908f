"""One reader's connection: a stream's events as they come, written to one HTTP response.

There is one writer for each connection and no task beside it. One task for all of them looks four times a second for those that
have not been written to for long, which are sent a comment, and for those that take nothing of what was written, which are cut
off.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping

import anyio
from aiohttp import web
from msgspec import Struct

from supervisor.gateway.frames import COMMENT, RETRY
from supervisor.gateway.stream import Reader
from supervisor.gateway.streams import Streams

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # else nginx holds events back until its buffer is full
}
SEND_BUFFER = 65_536  # bytes that the kernel holds for one reader; left alone it takes megabytes before a write waits
GONE_AFTER = 30_000  # milliseconds until the kernel gives up on a peer that acknowledges nothing


class Patience(Struct, frozen=True):
    """How long a connection may be silent, in each direction. Seconds; a look late, or two. Tests pass shorter ones."""

    look_every: float = 0.25
    status: float = 0.75  # in which work that fails is still answered by a status; the status line goes out within 1
    comment: float = 14.5  # one at least every 15: proxies cut what is silent for 30 to 60
    write: float = 10.0  # in which a reader takes nothing of what was written to it


USUAL = Patience()


class Connection:
    """A reader's connection, as `Beat` sees it."""

    __slots__ = (
        "_is_waiting",
        "_left",
        "_since",
        "_wrote",
        "bytes",
        "events",
        "is_begun",
        "is_due",
        "reader",
        "transport",
    )

    def __init__(self, reader: Reader, transport: asyncio.Transport) -> None:
        self.reader = reader
        self.transport = transport
        self.is_begun = False  # the status line is out
        self.is_due = False  # for a comment
        self.events = self.bytes = 0  # written until now
        self._wrote = False  # since the last look
        self._is_waiting = False  # to be taken
        self._left = 0  # bytes that were not taken at the last look, while a write waits
        self._since = asyncio.get_running_loop().time()  # of the last write, or of the last progress of one, to a look
        _bound(transport.get_extra_info("socket"))

    async def write(self, response: web.StreamResponse, data: bytes) -> None:
        self._is_waiting, self._left = True, 0
        await response.write(data)
        self._is_waiting, self._wrote, self.is_due = False, True, False
        self.bytes += len(data)

    async def end(self, response: web.StreamResponse) -> None:
        self._is_waiting, self._left = True, 0  # for what was written before, too
        await response.write_eof()

    def look(self, now: float, patience: Patience) -> None:
        """Cuts it off, or has it send a comment, where it is time for that."""
        if self._is_waiting:
            left = self.transport.get_write_buffer_size()
            if left != self._left:  # the first look, or some of it was taken
                self._since, self._left = now, left
            elif now - self._since > patience.write:
                self.transport.abort()
        elif self._wrote:
            self._since, self._wrote = now, False
        elif now - self._since >= (patience.comment if self.is_begun else patience.status):
            self.is_due = True
            self.reader.wake()


class Beat:
    """Looks after all connections, and has what was written to them."""

    def __init__(self, patience: Patience = USUAL) -> None:
        self._patience = patience
        self._connections: set[Connection] = set()
        self._some = anyio.Event()
        self._events = self._bytes = 0  # of connections that have ended

    @property
    def readers(self) -> int:
        return len(self._connections)

    @property
    def events(self) -> int:
        return self._events + sum(one.events for one in self._connections)

    @property
    def bytes(self) -> int:
        return self._bytes + sum(one.bytes for one in self._connections)

    async def run(self) -> None:
        """Looks for as long as there is somebody to look at, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._connections:
                self._some = anyio.Event()
                await self._some.wait()
            await anyio.sleep(self._patience.look_every)
            now = loop.time()
            for one in list(self._connections):
                one.look(now, self._patience)

    def add(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._some.set()

    def remove(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._events += connection.events
        self._bytes += connection.bytes


class Following:
    """What a route answers with whose caller is to follow a stream.

    The route has returned by then: nothing of it, and nothing of what was asked, is held for as long as the stream lasts.
    """

    __slots__ = ("_beat", "_headers", "_reader", "_streams")

    def __init__(self, streams: Streams, beat: Beat, reader: Reader, headers: Mapping[str, str]) -> None:
        self._streams = streams
        self._beat = beat
        self._reader = reader
        self._headers = headers

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Writes events until the stream ends or the caller leaves. Closes the reader.

        Raises what the work failed with where that was before its first event, and nothing was sent yet.
        """
        transport, reader = request.transport, self._reader
        if transport is None:
            reader.close()
            raise ConnectionResetError("the caller left before its answer began")
        connection = Connection(reader, transport)
        self._beat.add(connection)
        try:
            response = web.StreamResponse(headers={**HEADERS, **self._headers})
            return await _write(request, self._streams, connection, response)
        finally:
            self._beat.remove(connection)
            reader.close()


async def _write(
    request: web.Request, streams: Streams, connection: Connection, response: web.StreamResponse
) -> web.StreamResponse:
    reader, is_told = connection.reader, False
    while not reader.is_done:
        if reader.lost:
            data = await streams.behind(reader)
            if data is None:
                connection.transport.abort()
                return response
        else:
            before = reader.next
            data = reader.take()
            connection.events += reader.next - before
        if not data:
            if not connection.is_due:
                await reader.wait()
                continue
            connection.is_due = False
            data = COMMENT
        if not response.prepared:
            if reader.stream.refused is not None and data is not COMMENT:
                raise reader.stream.refused
            await response.prepare(request)
            response.headers.clear()  # they are out, and would stay for as long as the stream does
            connection.is_begun = True
        if not is_told and data is not COMMENT:
            # With the first event: some readers take a block of nothing but `retry:` for an event.
            data, is_told = RETRY + data, True
        await connection.write(response, data)
    if not response.prepared:
        await response.prepare(request)
    await connection.end(response)
    return response


def _bound(raw: socket.socket | None) -> None:
    """Has the kernel hold less for a slow reader, and give up on one that is gone without a word."""
    if raw is None:
        return
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_AFTER)
