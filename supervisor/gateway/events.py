"""What becomes of the team, followed over HTTP."""

from __future__ import annotations

from supervisor.gateway.follow import Following
from supervisor.gateway.operation import Answer, Call
from supervisor.gateway.resume import ResumeQuery
from supervisor.gateway.stream import read_cursor


async def watch(call: Call[None]) -> Answer:
    """The team as it is, then every change; or what has changed since Last-Event-ID, and then every change."""
    house, query = call.house, call.query
    assert isinstance(query, ResumeQuery)
    said = call.request.headers.get("Last-Event-ID") or query.last_event_id
    cursor = read_cursor(said) if said else None
    if not house.happenings.knows(cursor):
        await house.team.renewed()  # figures change without a word, and a picture is to have the newest
    reader = house.happenings.follow(cursor, is_lost=bool(said) and cursor is None)
    return Following(house.streams, house.beat, reader, {})
