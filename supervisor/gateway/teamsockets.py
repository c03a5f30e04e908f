"""Who would be asked in a team chat, and one of them made to forget a session."""

from __future__ import annotations

from typing import Annotated

import anyio
from msgspec import Meta, Struct

from protocol import names
from protocol.errors import Stalled
from protocol.messages import Reset, ResetResponse
from supervisor.gateway.members import replied
from supervisor.gateway.operation import Answer, Call
from supervisor.team.routing import ANSWERING

RESET_WITHIN = 10.0  # seconds; its store waits for another process for five


class TeamSocket(Struct, frozen=True):
    """One who may be asked. `ready` is whether it would be asked where nobody is named."""

    socket_id: str
    specialist_id: str
    name: str
    description: str
    state: str
    ready: bool
    model: str | None


class TeamSockets(Struct, frozen=True):
    sockets: list[TeamSocket]
    total: int


class ResetBody(Struct, frozen=True):
    session_id: str | None = None


_SESSION = {"required": ["session_id"], "properties": {"session_id": {"type": "string"}}}
WithSession = Annotated[ResetBody, Meta(extra_json_schema=_SESSION)]  # null is answered with what to do


class SocketReset(Struct, frozen=True):
    """`removed` turns of the session were forgotten."""

    socket_id: str
    session_id: str
    removed: int


async def sockets(call: Call[None]) -> Answer:
    """Who would be asked, and who could be."""
    told = [
        TeamSocket(
            socket_id=one.ai_id,
            specialist_id=names.specialist_id(one.name),
            name=one.name,
            description=one.description,
            state=one.state,
            ready=one.state in ANSWERING,
            model=one.model,
        )
        for one in call.house.team.specialists
    ]
    return TeamSockets(told, len(told))


async def reset_socket(call: Call[ResetBody]) -> Answer:
    """Has one of them forget a session."""
    member = call.house.team.member(call.part())
    try:
        with anyio.fail_after(RESET_WITHIN):
            reply = await replied(member, Reset(session_id=call.body.session_id), ResetResponse)
    except TimeoutError:
        raise Stalled(f"{member.name} has not answered for {RESET_WITHIN:g} s: chorus status {member.name}") from None
    return SocketReset(names.ai_id(member.name), reply.session_id or "", reply.removed)
