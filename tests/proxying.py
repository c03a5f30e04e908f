"""A TCP proxy that breaks connections at will: the network between a client and the gateway.

async with Proxy(port) as proxy:
    proxy.cut_behind(b"two ")     # resets the connection that has just brought this to the client
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from types import TracebackType
from typing import Self

import anyio.lowlevel

_REQUEST = re.compile(rb"^([A-Z]+ /\S*) HTTP/1\.1\r$", re.MULTILINE)


class Proxy:
    """Listens on a free port inside `async with`. `requests` are the methods and paths that went through, in order.

    `refuses` has every new connection reset at once.
    """

    def __init__(self, port: int) -> None:
        self.requests: list[str] = []
        self.connections = 0  # that were accepted until now
        self.refuses = False
        self._to = port
        self._marks: list[bytes] = []
        self._pairs: set[_Pair] = set()

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        """Connections at this moment."""
        return len(self._pairs)

    def cut(self) -> None:
        """Resets every connection, towards both ends."""
        for pair in list(self._pairs):
            pair.reset()

    def cut_behind(self, *marks: bytes) -> None:
        """Resets the connection that has brought the first of these bytes to its client; then the next one's, and so on."""
        self._marks += marks

    def passed(self, data: bytes) -> bool:
        """Whether a mark is in what goes to a client."""
        if self._marks and self._marks[0] in data:
            del self._marks[0]
            return True
        return False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        while self._pairs:
            await anyio.lowlevel.checkpoint()
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        pair = _Pair(self, reader, writer)
        self._pairs.add(pair)
        try:
            if self.refuses:
                pair.reset()
            else:
                await pair.run(self._to)
        finally:
            self._pairs.discard(pair)


class _Pair:
    """One connection, and ours to the gateway for it."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writers = [writer]

    async def run(self, port: int) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            self._writers.append(writer)
            await asyncio.gather(self._up(writer), self._down(reader))
        except OSError:
            self.reset()  # one end broke it, so that the other shall see it broken, too
        finally:
            for writer in self._writers:
                writer.close()

    def reset(self) -> None:
        for writer in self._writers:
            raw: socket.socket = writer.get_extra_info("socket")
            if raw.fileno() >= 0:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _up(self, writer: asyncio.StreamWriter) -> None:
        while data := await self._reader.read(65_536):
            self._proxy.requests += [request.decode() for request in _REQUEST.findall(data)]
            writer.write(data)
            await writer.drain()
        writer.close()  # the client is gone: no client here says that it only has no more questions

    async def _down(self, reader: asyncio.StreamReader) -> None:
        client = self._writers[0]
        while data := await reader.read(65_536):
            client.write(data)
            await client.drain()
            if self._proxy.passed(data):
                self.reset()
                return
        client.close()
