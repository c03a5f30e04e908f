"""A small HTTP/1.1 server for look-alikes: raw asyncio, so that every byte and every break is ours to choose.

It records each request, and whether the client left before its answer was complete. It is no server for
anything else: requests need a Content-Length, and what it does not expect makes it stop.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}


class Request:
    """One request as it came. `gone` is set when the client leaves before the answer is complete."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes, connection: int) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.raw = body
        self.body: dict[str, Any] = json.loads(body) if body else {}
        self.connection = connection  # the same number: the same connection
        self.gone = asyncio.Event()
        self.answered = asyncio.Event()


class Reply:
    """How an answer is written. `start` sends the status line; nothing is sent before it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.started = False

    def start(self, status: int, content_type: str, headers: dict[str, str] | None = None) -> None:
        """The status line and headers of a chunked answer."""
        self.started = True
        self._write(_head(status, {"Content-Type": content_type, "Transfer-Encoding": "chunked", **(headers or {})}))

    async def chunk(self, data: bytes, cut: int | None = None) -> None:
        """One chunk, flushed; `cut` sends it on in writes of so many bytes, each of which becomes a chunk."""
        for part in [data] if cut is None else [data[at : at + cut] for at in range(0, len(data), cut)]:
            await self.raw(framed(part))

    async def raw(self, data: bytes) -> None:
        """Bytes as they are; returns when the client has taken nearly all."""
        self._write(data)
        await self._connection.drained()

    def end(self) -> None:
        self._write(b"0\r\n\r\n")

    def whole(self, status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> None:
        """An answer of known length."""
        self.started = True
        length = {"Content-Type": content_type, "Content-Length": str(len(body)), **(headers or {})}
        self._write(_head(status, length) + body)

    def json(self, body: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.whole(status, json.dumps(body).encode(), "application/json; charset=utf-8", headers)

    def close(self) -> None:
        """Ends the connection in order, wherever the answer stands."""
        self._connection.transport.close()

    def reset(self) -> None:
        """Breaks the connection: the client gets ECONNRESET."""
        sock: socket.socket = self._connection.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.transport.abort()

    def _write(self, data: bytes) -> None:
        self._connection.transport.write(data)


class Connection(asyncio.Protocol):
    """One client. Requests are answered one after the other; a client that leaves cancels the answer."""

    transport: asyncio.Transport

    def __init__(self, server: RawServer, number: int) -> None:
        self._server = server
        self._number = number
        self._input = bytearray()
        self._answering: asyncio.Task[None] | None = None
        self._request: Request | None = None
        self._room = asyncio.Event()
        self._room.set()
        self.over = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._input += data
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self.over.set()
        self._room.set()
        if self._request is not None:
            self._request.gone.set()
        if self._answering is not None:
            self._answering.cancel()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    async def drained(self) -> None:
        await self._room.wait()
        if self.transport.is_closing():
            raise asyncio.CancelledError

    def _next(self) -> None:
        head, end, rest = bytes(self._input).partition(b"\r\n\r\n")
        if self._answering is not None or not end:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        self._input = bytearray(rest[length:])
        self._request = Request(method, path, headers, rest[:length], self._number)
        self._server.requests.append(self._request)
        self._answering = asyncio.get_running_loop().create_task(self._answer(self._request))

    async def _answer(self, request: Request) -> None:
        await self._server.answer(request, Reply(self))
        request.answered.set()
        self._answering = self._request = None
        if not self.transport.is_closing():
            self._next()


class RawServer:
    """Listens on a free port inside `async with`. What it answers is `answer`, written by the look-alike."""

    def __init__(self, answer: Callable[[Request, Reply], Awaitable[None]], port: int = 0) -> None:
        self.answer = answer
        self.port = port
        self.requests: list[Request] = []
        self.connections: set[Connection] = set()
        self._count = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()

    async def listen(self) -> None:
        """Opens the port, the same one as before."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Closes the port and every connection; who comes now is refused."""
        if self._server is not None:
            self._server.close()
            for connection in list(self.connections):
                connection.transport.abort()
            await asyncio.gather(*(connection.over.wait() for connection in list(self.connections)))
            await self._server.wait_closed()
            self._server = None

    def _connection(self) -> Connection:
        self._count += 1
        return Connection(self, self._count)


def framed(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
