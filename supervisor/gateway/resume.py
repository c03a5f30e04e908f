"""Streams from the outside: followed from their begin, or from where a reader was; looked at; cancelled.

They are found by their id, and by the Idempotency-Key of the request that began them.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web
from msgspec import Struct

from protocol.errors import NotFound
from supervisor.gateway.follow import Following
from supervisor.gateway.operation import RESUME_GRACE, Answer, Call
from supervisor.gateway.stream import Cursor, Stream, read_cursor


class ResumeQuery(Struct, frozen=True):
    """`last_event_id` is what the header of that name is, for a page that was loaded anew."""

    last_event_id: str | None = None


class StreamStatus(Struct, frozen=True):
    """A stream as it is now. Times are Unix times."""

    stream_id: str
    kind: str
    state: str
    created_at: float
    ended_at: float | None
    events: int
    readers: int
    events_url: str


class Cancelled(Struct, frozen=True):
    """`cancelled` is whether there was still something to cancel."""

    stream_id: str
    cancelled: bool


async def events(call: Call[None]) -> Answer:
    """The events of a stream from the first on, or from Last-Event-ID, in the stream's own vocabulary. 204 is its end."""
    query: ResumeQuery = call.query
    stream = await call.house.streams.find(call.part(), call.owner)
    cursor = _asked_for(call.request, query.last_event_id)
    return await serve(call, stream, grace=RESUME_GRACE, cursor=cursor)


async def status(call: Call[None]) -> Answer:
    """How a stream is."""
    stream = await call.house.streams.find(call.part(), call.owner)
    state = "running" if stream.ended is None else "failed" if stream.failed else "completed"
    head = stream.head
    return StreamStatus(
        stream_id=head.id,
        kind=head.kind,
        state=state,
        created_at=head.created,
        ended_at=stream.ended,
        events=stream.count,
        readers=len(stream.readers),
        events_url=url_of(stream),
    )


async def cancel(call: Call[None]) -> Answer:
    """Ends the work behind a stream, down to the model server. A second time changes nothing."""
    stream = await call.house.streams.find(call.part(), call.owner)
    return Cancelled(stream.head.id, call.house.streams.cancel(stream))


async def serve_from(call: Call[Any], last_event_id: str | None) -> Answer | None:
    """Goes on where the caller's cursor says; None where it has none. Raises NotFound for one that is nobody's any more."""
    cursor = _asked_for(call.request, last_event_id)
    if cursor is None:
        return None
    stream = await call.house.streams.find_by_cursor(cursor, call.owner)
    return await serve(call, stream, grace=RESUME_GRACE, cursor=cursor)


async def serve(
    call: Call[Any], stream: Stream, *, grace: float | None, cursor: Cursor | None = None, opening: bytes = b""
) -> Answer:
    """Has the caller follow a stream: from its first event, or from behind a cursor; 204 where nothing follows that.

    `opening` is a frame that only this reader is given, before everything else.
    """
    since = 0
    if cursor is not None:
        since = stream.place(cursor) or 0  # a place in something else: everything is new to it
        if stream.is_over and since == stream.visible:
            return web.Response(status=204)  # the only answer that has EventSource stop
    headers = {"X-Stream-Id": stream.head.id, "Content-Location": url_of(stream)}
    reader = stream.reader(since, grace=grace, opening=opening)
    return Following(call.house.streams, call.house.beat, reader, headers)


def url_of(stream: Stream) -> str:
    return f"/api/stream/events/{stream.head.id}"


def _asked_for(request: web.Request, last_event_id: str | None) -> Cursor | None:
    """The header wins over the query: it is the newer one of a page that was loaded with a query and lost its connection."""
    said = request.headers.get("Last-Event-ID") or last_event_id
    if not said:
        return None
    cursor = read_cursor(said)
    if cursor is None:
        raise NotFound(f"Last-Event-ID {said[:64]!r} is no event of this gateway: ask again")
    return cursor
