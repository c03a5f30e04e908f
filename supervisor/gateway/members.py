"""Who of the team is asked, and one of them asked for something that has a single reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from msgspec.structs import replace

from protocol.errors import BadRequest, Unavailable, WrongReply
from protocol.messages import AnyReply, AnyRequest
from supervisor.gateway.team import Team, reached
from supervisor.team.chat import Member
from supervisor.team.events import Trouble

R = TypeVar("R", bound=AnyReply)


def members_of(team: Team, spellings: Sequence[str] | None) -> list[Member]:
    """Those of these names, each once and called as it was spelt first; None is everybody who is ready.

    One that is known not to answer takes part with its trouble. Raises NotFound for a name that is nobody's, and Unavailable
    where none of them can be asked.
    """
    if spellings is None:
        members = [Member(one.name, one.host, one.port) for one in team.answering]
    elif not spellings:
        raise BadRequest("specialists: names nobody; leave it out to ask everybody who is ready")
    else:
        members = [_member(team, spelling) for spelling in spellings]
        members = list({member.name: member for member in reversed(members)}.values())[::-1]
    if not any(member.trouble is None for member in members):
        why = "; ".join(member.trouble.error for member in members if member.trouble) or "chorus status says why"
        raise Unavailable(f"nobody can be asked: {why}", retry_after=1.0)
    return members


def _member(team: Team, spelling: str) -> Member:
    try:
        return replace(team.member(spelling), spelling=spelling)
    except Unavailable as error:
        found = team.find(spelling)
        return Member(found.name, found.host, found.port, spelling, Trouble(error.code, error.sentence))


async def replied(member: Member, request: AnyRequest, kind: type[R]) -> R:
    """The one reply of a specialist. Raises what it refuses with."""
    async with reached(member) as connection:
        reply = await connection.call(request)
    if not isinstance(reply, kind):
        raise WrongReply(f"{member.name} answered a {type(request).__name__.lower()} with something else")
    return reply
