"""The client that all our own programs use: connect, ask, iterate the replies, cancel.

One question at a time on one connection. A connection that is left while an answer is under way says `cancel` before it
closes: a bare close looks like a half-close to the other side until the kernel is asked.

These are asyncio's own streams: anyio's take reading out of the event loop and put it in again round every receive, which is a
third of what a token costs.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from protocol.codec import decode_reply, encode, parse_json, raise_for
from protocol.control import AnyAnswer, AnyControl, Result
from protocol.control import decode_answer as _decode_answer
from protocol.errors import ConnectionLost, ProtocolError, Refused, SelfConnection, WrongReply
from protocol.exchange import OVER, Exchange
from protocol.framing import LineBuffer
from protocol.messages import AnyReply, AnyRequest, Cancel, Cancelled, Error

R = TypeVar("R")

# An answer of max_reply_bytes with every character escaped, twice over; more than that is no answer of ours.
MAX_REPLY_LINE = 134_217_728
READ_SIZE = 65_536
SAY_CANCEL_WITHIN = 0.5  # seconds
CANCEL_ID = "cancel-"  # how the request_id of our own cancels begins


class Lines(Generic[R]):
    """A connection on which lines go out and decoded lines come in. Closed by whoever opened it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decode: Callable[[bytes], R]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decode = decode
        self._lines = LineBuffer(MAX_REPLY_LINE)

    async def send(self, message: msgspec.Struct) -> None:
        """Sends one message; raises ConnectionLost when the peer is gone."""
        try:
            self._writer.write(encode(message))
            await self._writer.drain()
        except OSError:
            raise ConnectionLost("the connection broke while a request was sent") from None

    async def receive(self) -> R:
        """The next message; raises ConnectionLost at the end, WrongReply for a line that is none."""
        while True:
            line = self._lines.next_line()
            if line:
                return self._decode(line)
            if line is not None:
                continue
            try:
                data = await self._reader.read(READ_SIZE)
            except OSError:
                raise ConnectionLost("the connection broke before the answer was whole") from None
            if not data:
                raise ConnectionLost("the connection ended before the answer did")
            self._lines.feed(data)

    async def aclose(self) -> None:
        self._writer.transport.abort()
        await anyio.lowlevel.cancel_shielded_checkpoint()  # in which the socket is closed


class Connection(Lines[AnyReply]):
    """A connection to a specialist."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer, decode_reply)
        self._numbers = itertools.count(1)
        self._open: str | int | None = None  # the request_id that is under way

    async def ask(self, request: AnyRequest) -> AsyncGenerator[AnyReply]:
        """Asks, and yields every reply up to the last one.

        Raises what an `error` or `stream_error` stands for, WrongReply when the peer breaks the protocol, ConnectionLost.
        """
        if request.request_id is None:
            request = msgspec.structs.replace(request, request_id=next(self._numbers))
        self._open = request.request_id
        await self.send(request)
        exchange = Exchange()
        while exchange.state not in OVER:
            reply = await self.receive()
            if reply.request_id != request.request_id:
                if isinstance(reply, Cancelled) or str(reply.request_id).startswith(CANCEL_ID):
                    continue  # the answer to our own `cancel`, `not_found` where it came too late: beside the exchange
                if not isinstance(reply, Error):
                    raise WrongReply(f"an answer to request {reply.request_id!r} came, which nobody asked")
            exchange.advance(reply)
            if exchange.state in OVER:
                self._open = None
                raise_for(reply)
            yield reply

    async def call(self, request: AnyRequest) -> AnyReply:
        """Asks something that is answered by one reply, and returns it."""
        last: AnyReply | None = None
        async for reply in self.ask(request):
            last = reply
        assert last is not None, "an exchange ends with a reply"
        return last

    async def cancel(self) -> None:
        """Ends the question under way: its replies go on to their end, which says `cancelled`."""
        if self._open is not None:
            await self.send(Cancel(request_id=f"{CANCEL_ID}{self._open}", target=self._open))

    async def aclose(self) -> None:
        if self._open is not None:
            with anyio.CancelScope(shield=True), anyio.move_on_after(SAY_CANCEL_WITHIN):
                try:
                    await self.cancel()
                except ProtocolError:
                    pass  # gone already: nothing left to cancel
        await super().aclose()


@asynccontextmanager
async def connect(host: str, port: int) -> AsyncIterator[Connection]:
    """A connection to a specialist, closed at the end of the block. Raises Refused or SelfConnection."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        raise Refused(f"nobody answers on {host}:{port} ({reason(error)})") from None
    connection = Connection(reader, writer)
    try:
        if writer.get_extra_info("sockname") == writer.get_extra_info("peername"):
            # The port lies in the ephemeral range, and the kernel may pick it for our own end (simultaneous open).
            raise SelfConnection(f"nobody listens on {host}:{port} (the connection met itself)")
        yield connection
    finally:
        await connection.aclose()


class ControlConnection(Lines[AnyAnswer]):
    """A connection to the supervisor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer, _control_answer)

    async def ask(self, request: AnyControl) -> AsyncGenerator[AnyAnswer]:
        """Asks, and yields every line up to and with the `result`; a `watch` yields until the connection ends."""
        await self.send(request)
        while True:
            answer = await self.receive()
            if isinstance(answer, Error):
                raise_for(answer)
            yield answer
            if isinstance(answer, Result):
                return

    async def call(self, request: AnyControl) -> Result:
        """Asks, and returns the `result`; progress on the way is dropped."""
        async for answer in self.ask(request):
            if isinstance(answer, Result):
                return answer
        raise ConnectionLost("the supervisor ended before it had answered")


@asynccontextmanager
async def connect_control(path: str | os.PathLike[str]) -> AsyncIterator[ControlConnection]:
    """A connection to the supervisor, closed at the end of the block. Raises Refused when none listens there."""
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError as error:
        raise Refused(f"no supervisor answers at {os.fspath(path)} ({reason(error)})") from None
    connection = ControlConnection(reader, writer)
    try:
        yield connection
    finally:
        await connection.aclose()


def _control_answer(line: bytes) -> AnyAnswer:
    try:
        answer: AnyAnswer = parse_json(_decode_answer, line)
        return answer
    except ProtocolError as error:
        raise WrongReply(f"the supervisor's answer cannot be read: {error.sentence}") from None


def reason(error: OSError) -> str:
    """What the system says, without Python's own wording around it."""
    cause = error.__cause__ or error
    first = getattr(cause, "exceptions", [cause])[0]  # one for each address that was tried
    number = getattr(first, "errno", None) or 0
    return (os.strerror(number) if number > 0 else str(first)).lower()  # names that cannot be resolved count downwards
