"""How a process is asked how it is: a specialist over the wire, the gateway over HTTP. Either way on one open connection.

For the gateway a few lines of HTTP on a stream do: what it would take to import a client is more than all of the supervisor.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from protocol.client import connect
from protocol.codec import decode_reply
from protocol.errors import ConnectionLost, PeerError, Refused, WrongReply
from protocol.messages import Health, HealthResponse
from protocol.settings import EVERY_ADDRESS, ChildConfig, GatewayConfig, Place

LONGEST_HEAD = 16_384  # bytes
LONGEST_BODY = 65_536

Ask = Callable[[], Awaitable[HealthResponse]]


def asking(config: ChildConfig) -> AbstractAsyncContextManager[Ask]:
    """A connection on which it can be asked again and again. Opening it and asking raise ProtocolError."""
    if isinstance(config, GatewayConfig):
        return _over_http(config)
    return _over_the_wire(*config.places[0])


@asynccontextmanager
async def _over_the_wire(host: str, port: int) -> AsyncIterator[Ask]:
    async with connect(host, port) as connection:

        async def ask() -> HealthResponse:
            answer = await connection.call(Health())
            if not isinstance(answer, HealthResponse):
                raise PeerError("a health check was answered by something else")
            return answer

        yield ask


@asynccontextmanager
async def _over_http(config: GatewayConfig) -> AsyncIterator[Ask]:
    host, port = _reached(config.places[0])
    try:
        stream = await (_tls(host, port) if config.settings.tls_certificate else anyio.connect_tcp(host, port))
    except OSError as error:
        raise Refused(f"nobody answers on {host}:{port} ({error})") from None
    name = f"[{host}]" if ":" in host else host
    request = f"GET /health HTTP/1.1\r\nHost: {name}:{port}\r\nAccept: application/json\r\n\r\n".encode()
    async with stream:
        buffered = BufferedByteReceiveStream(stream)

        async def ask() -> HealthResponse:
            try:
                await stream.send(request)
                return await _response(buffered)
            except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError):
                raise ConnectionLost("the connection ended before the answer did") from None

        yield ask


async def _response(stream: BufferedByteReceiveStream) -> HealthResponse:
    """The one response that is due: RFC 9112, with a Content-Length, which is how a short answer is sent."""
    try:
        head = await stream.receive_until(b"\r\n\r\n", LONGEST_HEAD)
    except anyio.DelimiterNotFound:
        raise WrongReply("a health check was answered by something that is not HTTP") from None
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = headers.get("content-length", "")
    if not status.startswith("HTTP/1.1 200") or not length.isdecimal() or int(length) > LONGEST_BODY:
        raise WrongReply(f"a health check was answered by: {status[:100]}")
    answer = decode_reply(await stream.receive_exactly(int(length)))
    if not isinstance(answer, HealthResponse):
        raise WrongReply("a health check was answered by something else")
    return answer


def _reached(place: Place) -> Place:
    host, port = place
    return EVERY_ADDRESS.get(host, host), port


async def _tls(host: str, port: int) -> anyio.abc.ByteStream:
    """It is our own child on our own listener that is asked: its pid says so, not its certificate."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # Without TLS's own goodbye, which has one wait for the other side: it may be stopped.
    return await anyio.connect_tcp(host, port, ssl_context=context, tls_standard_compatible=False)
