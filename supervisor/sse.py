"""The gateway's streams as our own programs read them: asked for, followed, and gone on with when a connection is lost.

What EventSource does in a browser, and what it cannot: questions by POST, keys, refusals with their sentence, and patience that
has an end. A stream goes on behind the last event that was read, so nothing is lost and nothing comes twice.

A question carries an Idempotency-Key, so that asking again joins what was asked before. Whoever leaves before the end withdraws
it by that name, which nobody else knows.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing
from typing import Any, Literal
from urllib.parse import quote

import anyio
import msgspec
from msgspec import Struct

from protocol import errors
from protocol.errors import BY_CODE, ConnectionLost, ProtocolError, Refused, WrongReply, from_wire
from protocol.events import Event, EventBuffer
from supervisor.http import Response, request

MAX_EVENT = 134_217_728  # bytes: an answer at its limit with every character escaped, twice over
HELD_FOR = 10.0  # seconds after which a lost connection is no longer one of those before it
WITHDRAW_WITHIN = 0.5  # seconds that whoever leaves spends on saying so
MAX_PROBLEM = 65_536  # bytes that are read of a refusal
PASSES = frozenset({429, 502, 503, 504})  # with these a stream that was there is asked for again

# What a status says where the body names no code of ours.
_OF_STATUS: dict[int, type[ProtocolError]] = {
    401: errors.Forbidden,
    403: errors.Forbidden,
    404: errors.NotFound,
    429: errors.Busy,
    503: errors.Unavailable,
}


class Patience(Struct, frozen=True):
    """How often and how long a lost connection is made anew: `tries` in a row and `within` seconds from the first loss.

    A new event ends the row, and so does a connection that held for ten seconds. Before a try up to `first` seconds go
    by, twice that before the next, `longest` in the end; on top of what the gateway asks for. Chance picks all of it, so that
    a thousand readers of a gateway that was restarted do not come back in step.
    """

    tries: int = 10
    within: float = 60.0
    first: float = 0.5
    longest: float = 10.0

    def delay(self, lost: int, asked: float, chance: float) -> float:
        """Seconds from the `lost`th loss in a row to the next try; `chance` is a number from 0 to 1."""
        window: float = min(self.longest, self.first * 2 ** min(lost - 1, 16))
        return asked + chance * window


PATIENCE = Patience()


class Lost(Struct, frozen=True):
    """A lost connection, for whoever shows it: why, how many in a row, and in how many seconds it is made anew."""

    why: str
    tries: int
    again_after: float


class _Stream:
    """One stream, and where its reader is in it: what the next request must say."""

    def __init__(self, method: Literal["GET", "POST"], path: str, body: bytes = b"", last_id: str = "") -> None:
        self.method = method
        self.path = path
        self.body = body
        self.retry_key = secrets.token_urlsafe(16)
        self.buffer = EventBuffer(MAX_EVENT, last_id)  # of this connection, or of the one before
        self.stream_id = ""
        self.has_begun = False  # an event was read
        self.lost = 0  # connections in a row

    @property
    def headers(self) -> dict[str, str]:
        said = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-store"}
        if self.body:
            said["Content-Type"] = "application/json"
        if not self.stream_id:
            said["Idempotency-Key"] = self.retry_key
        if self.buffer.last_id:
            said["Last-Event-ID"] = self.buffer.last_id
        return said

    @property
    def retry(self) -> float:
        return self.buffer.retry or 0.0

    def connected(self, stream_id: str | None) -> None:
        self.stream_id = stream_id or self.stream_id
        self.buffer = EventBuffer(MAX_EVENT, self.buffer.last_id, self.buffer.retry)

    def next_event(self) -> Event | None:
        event = self.buffer.next_event()
        if event is not None:
            self.has_begun, self.lost = True, 0
        return event

    def lose(self) -> None:
        """Has the next request ask for the rest. Raises ConnectionLost where the rest cannot be told from the whole."""
        self.lost += 1
        if self.stream_id:
            self.method, self.path, self.body = "GET", f"/api/stream/events/{quote(self.stream_id, safe='')}", b""
        elif self.has_begun and (self.method == "POST" or not self.buffer.last_id):
            raise ConnectionLost("the connection ended before the stream did, and the stream cannot be gone on with")


class EventClient:
    """The streams of one gateway. `base` is its address, http://127.0.0.1:8003; `key` opens it, where it wants one.

    `tell` hears of every connection that is lost and made anew.
    """

    def __init__(
        self,
        base: str,
        *,
        key: str = "",
        patience: Patience = PATIENCE,
        tell: Callable[[Lost], None] = lambda lost: None,
    ) -> None:
        self._base = base.rstrip("/")
        self._key = {"Authorization": f"Bearer {key}"} if key else {}
        self._patience = patience
        self._tell = tell

    async def post(
        self, path: str, body: Mapping[str, Any], *, last: Collection[str] = ("done",)
    ) -> AsyncGenerator[Event]:
        """Asks; yields every event up to the first that is called one of `last`, or up to the stream's end.

        Closing it before that withdraws the question, unless the body says `resume`. Raises what the gateway refuses with,
        Refused where nobody listens, and ConnectionLost when patience ends.
        """
        stream = _Stream("POST", path, msgspec.json.encode(body))
        is_over = bool(body.get("resume"))
        try:
            async with aclosing(self._follow(stream, last)) as events:
                async for event in events:
                    is_over = is_over or event.name in last
                    yield event
            is_over = True
        except ProtocolError:
            is_over = True  # refused, or nobody is there to be told
            raise
        finally:
            if not is_over:
                await self._withdraw(stream.retry_key)

    async def get(self, path: str, *, last_id: str = "", last: Collection[str] = ("done",)) -> AsyncGenerator[Event]:
        """Follows, from behind the event `last_id` where that is given; as `post`, but closing it withdraws nothing."""
        async with aclosing(self._follow(_Stream("GET", path, last_id=last_id), last)) as events:
            async for event in events:
                yield event

    async def _follow(self, stream: _Stream, last: Collection[str]) -> AsyncGenerator[Event]:
        since = 0.0
        while True:
            began = anyio.current_time()
            try:
                async with aclosing(self._read(stream)) as events:
                    async for event in events:
                        yield event
                        if event.name in last:
                            return
                return
            except ConnectionLost as error:
                lost = error
            now = anyio.current_time()
            if now - began > HELD_FOR:
                stream.lost = 0
            stream.lose()
            since = now if stream.lost == 1 else since
            delay = self._patience.delay(stream.lost, max(stream.retry, lost.retry_after or 0.0), random.random())
            if stream.lost > self._patience.tries or now + delay > since + self._patience.within:
                raise ConnectionLost(f"{lost.sentence}; given up after {stream.lost - 1} more tries")
            self._tell(Lost(lost.sentence, stream.lost, delay))
            await anyio.sleep(delay)

    async def _read(self, stream: _Stream) -> AsyncGenerator[Event]:
        """The events of one connection. Returns where the gateway says that nothing follows, and raises ConnectionLost else."""
        url = self._base + stream.path
        try:
            async with request(stream.method, url, self._key | stream.headers, stream.body) as response:
                if response.status == 204:
                    return
                if response.status != 200:
                    raise await _refusal(response, is_again=stream.lost > 0)
                if response.content_type != "text/event-stream":
                    raise WrongReply(f"{url} answers with {response.content_type}, which is no stream of events")
                stream.connected(response.headers.get("x-stream-id"))
                async with aclosing(response.data()) as pieces:
                    async for data in pieces:
                        stream.buffer.feed(data)
                        while (event := stream.next_event()) is not None:
                            yield event
        except Refused as error:
            if stream.lost:  # it comes back, perhaps
                raise ConnectionLost(error.sentence) from None
            raise Refused(f"{error.sentence}: chorus up") from None
        raise ConnectionLost(f"{self._base} ended the connection before the stream had ended")

    async def _withdraw(self, retry_key: str) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(WITHDRAW_WITHIN):
            try:
                async with request("DELETE", f"{self._base}/api/stream/{retry_key}", self._key):
                    pass
            except ProtocolError:
                pass  # gone, and the question with it


class _Problem(Struct, frozen=True):
    error: str
    code: str = ""
    partial: str = ""


async def _refusal(response: Response, *, is_again: bool) -> ProtocolError:
    """What an answer that is no stream stands for."""
    status, body = response.status, b""
    async with aclosing(response.data()) as pieces:
        async for data in pieces:
            body += data
            if len(body) > MAX_PROBLEM:
                break
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except msgspec.MsgspecError:
        problem = _Problem(f"the gateway answers with status {status}, and does not say why")
    waits = response.headers.get("retry-after", "")
    retry_after = float(waits) if waits.isascii() and waits.isdigit() else None
    if is_again and status in PASSES:
        return ConnectionLost(problem.error, retry_after=retry_after)
    if problem.code in BY_CODE:
        return from_wire(problem.code, problem.error, problem.partial, retry_after)
    usual = errors.BadRequest if 400 <= status < 500 else errors.Internal
    return _OF_STATUS.get(status, usual)(problem.error, partial=problem.partial, retry_after=retry_after)
