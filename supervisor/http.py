"""One HTTP request on a connection of its own: what a command needs of HTTP. `aiohttp` has all of it, and takes three times as
long to import as such a command takes to run.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anyio
import anyio.abc
import h11

from protocol.client import reason
from protocol.errors import BadRequest, ConnectionLost, Refused, WrongReply

CONNECT_WITHIN = 5.0  # seconds
SILENCE = 45.0  # seconds without a byte; the gateway's streams have a comment every 15
READ_SIZE = 65_536
PORTS = {"http": 80, "https": 443}


class Response:
    """An answer whose head is there. The names of `headers` are lower-case."""

    def __init__(self, connection: _Connection, head: h11.Response) -> None:
        self.status = head.status_code
        self.headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        self._connection = connection

    @property
    def content_type(self) -> str:
        """Without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def data(self) -> AsyncGenerator[bytes]:
        """The body as it comes. Raises ConnectionLost where it is cut off."""
        while not isinstance(event := await self._connection.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)


@asynccontextmanager
async def request(method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> AsyncGenerator[Response]:
    """The answer to one request; at the end of the block its connection is closed at once.

    Raises BadRequest for what is no address, Refused where nobody listens, ConnectionLost, and WrongReply for what is no HTTP.
    """
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname:
        raise BadRequest(f"{url!r} is no address of a gateway: http://127.0.0.1:8003 is one")
    said = {"Host": parts.netloc, "Content-Length": str(len(body)), "Connection": "close", **headers}
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    stream = await _connect(parts.hostname, parts.port or PORTS[parts.scheme], parts.scheme == "https")
    try:
        connection = _Connection(stream, parts.netloc)
        await connection.send(h11.Request(method=method, target=target, headers=list(said.items())), body)
        yield Response(connection, await connection.head())
    finally:
        await anyio.aclose_forcefully(stream)


class _Connection:
    """Bytes on one side, what they mean on the other."""

    def __init__(self, stream: anyio.abc.ByteStream, name: str) -> None:
        self._stream = stream
        self._name = name
        self._http = h11.Connection(h11.CLIENT)
        self._is_at_end = False

    async def send(self, head: h11.Request, body: bytes) -> None:
        events = (head, h11.Data(data=body), h11.EndOfMessage())
        try:
            await self._stream.send(b"".join(self._http.send(event) or b"" for event in events))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise ConnectionLost(f"{self._name} broke the connection") from None

    async def head(self) -> h11.Response:
        while not isinstance(event := await self.next_event(), h11.Response):
            pass  # 100 Continue and its like
        return event

    async def next_event(self) -> h11.Event:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._receive())
        except h11.RemoteProtocolError as error:
            if self._is_at_end:
                raise ConnectionLost(f"{self._name} ended the connection before its answer") from None
            raise WrongReply(f"{self._name} does not speak HTTP ({error})") from None
        assert isinstance(event, h11.Event), "h11 says PAUSED to servers only"
        return event

    async def _receive(self) -> bytes:
        try:
            with anyio.fail_after(SILENCE):
                return await self._stream.receive(READ_SIZE)
        except anyio.EndOfStream:
            self._is_at_end = True
            return b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise ConnectionLost(f"{self._name} broke the connection") from None
        except TimeoutError:
            raise ConnectionLost(f"nothing came from {self._name} for {SILENCE:g} s") from None


async def _connect(host: str, port: int, is_tls: bool) -> anyio.abc.ByteStream:
    where = f"{host}:{port}"
    try:
        with anyio.fail_after(CONNECT_WITHIN):
            if is_tls:
                return await anyio.connect_tcp(host, port, tls=True, tls_standard_compatible=False)
            return await anyio.connect_tcp(host, port)
    except TimeoutError:
        raise Refused(f"nobody answers on {where} within {CONNECT_WITHIN:g} s") from None
    except OSError as error:  # also what TLS finds wrong
        raise Refused(f"nobody answers on {where} ({reason(error)})") from None
