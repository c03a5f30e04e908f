"""What was said with a specialist: from its own store, or from an Engram where one is configured."""

from __future__ import annotations

from typing import Annotated, Any

import aiohttp
import anyio
import msgspec
from msgspec import Meta, Struct

from protocol import names
from protocol.errors import NotFound, PeerError
from protocol.messages import History, HistoryResponse, StoredTurn
from supervisor.gateway.members import replied
from supervisor.gateway.operation import Answer, Call

ENGRAM_WITHIN = 10.0  # seconds for the whole of its answer
STORE_WITHIN = 10.0  # seconds for ours: the file may be busy for five
MOST_BYTES = 33_554_432  # of Engram's answer


class ConversationQuery(Struct, frozen=True):
    """The newest `limit` turns, of one session or of all; `before` is the timestamp of the oldest one already seen."""

    limit: Annotated[int, Meta(ge=1, le=10_000)] = 10
    session_id: str | None = None
    before: float | None = None


class Conversations(Struct, frozen=True):
    """Turns, newest last, and how many there are in all."""

    conversations: list[StoredTurn]
    total: int


class _Engrams(Struct, frozen=True):
    """The same as somebody else keeps it: whatever a turn is there."""

    conversations: list[Any] = []
    total: int = 0


async def read(call: Call[None]) -> Answer:
    """The turns of one specialist's conversations."""
    query: ConversationQuery = call.query
    engram = call.house.config.settings.engram_url
    if engram is not None:
        return await _from_engram(engram, call.house.team.find(call.part()).name, query)
    member = call.house.team.member(call.part())
    asked = History(session_id=query.session_id, limit=query.limit, before=query.before)
    try:
        with anyio.fail_after(STORE_WITHIN):
            reply = await replied(member, asked, HistoryResponse)
    except TimeoutError:
        raise PeerError(f"{member.name} does not tell its history within {STORE_WITHIN:g} s") from None
    return Conversations(reply.conversations, reply.total)


async def _from_engram(url: str, name: str, query: ConversationQuery) -> Answer:
    told = {field: value for field, value in msgspec.to_builtins(query).items() if value is not None}
    target = f"{url.rstrip('/')}/api/conversations/{names.specialist_id(name)}"
    timeout = aiohttp.ClientTimeout(total=ENGRAM_WITHIN)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(target, params=told) as response:
            body = await response.content.read(MOST_BYTES)
            whole = response.content.at_eof()
    except (aiohttp.ClientError, OSError) as error:
        raise PeerError(f"Engram at {url} cannot be asked: {error}") from None
    except TimeoutError:
        raise PeerError(f"Engram at {url} does not answer within {ENGRAM_WITHIN:g} s") from None
    if response.status == 404:
        raise NotFound(f"Engram at {url} knows nothing of {name}")
    if response.status != 200:
        raise PeerError(f"Engram at {url} answers with status {response.status}")
    try:
        return msgspec.json.decode(body if whole else b"", type=_Engrams)
    except msgspec.MsgspecError as error:
        raise PeerError(f"Engram at {url} answers with something else: {error}") from None
