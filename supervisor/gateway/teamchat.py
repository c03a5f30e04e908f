"""Everybody asked at once over HTTP: all answers when the last one has ended, or each as it grows.

Nothing that arrived is lost. One that fails is an entry that failed, with what it had said; where all of them do, the answer is
still a 200 with nothing in `responses`. Only where nobody can be asked at all it is a 503.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from protocol.errors import BadRequest
from protocol.messages import Chat, Deadline
from supervisor.gateway.chat import (
    WITH_TEXT,
    ChatBody,
    ChatQuery,
    question_of,
)
from supervisor.gateway.members import members_of
from supervisor.gateway.operation import RESUME_GRACE, Answer, Call, as_json
from supervisor.gateway.resume import serve, serve_from
from supervisor.gateway.stream import Stream
from supervisor.gateway.streams import Work
from supervisor.gateway.team import Team
from supervisor.gateway.teamevents import KIND, Telling, whole
from supervisor.team.chat import Member, Moderation, TeamQuestion, ask_team
from supervisor.team.moderation import usual_moderator
from supervisor.team.routing import Orchestration

if TYPE_CHECKING:
    from supervisor.gateway.house import House

V0 = "application/vnd.chorus.v0+json"  # whoever accepts this is given `responses` as a dictionary of texts

Mode = Literal["pass_through", "synthesis", "consensus", "directed"]
Silence = Annotated[float, Meta(gt=0)]  # seconds


class TeamBody(ChatBody, frozen=True):
    """A question to everybody who is ready, or to `specialists`. `timeout` is how many seconds each may be silent.

    What is made of the answers: `pass_through` nothing; `synthesis` one answer, and `consensus` how far they agree, both by
    `synthesizer`; `directed` nothing, and those of `target_sockets` are asked.
    """

    specialists: list[str] | None = None
    target_sockets: list[str] | None = None
    moderation_mode: Mode = "pass_through"
    synthesizer: str | None = None
    timeout: Silence | None = None


TeamQuestionBody = Annotated[TeamBody, WITH_TEXT]


class TeamQuery(ChatQuery, frozen=True):
    """The same in a query; names are separated by commas."""

    specialists: str | None = None
    target_sockets: str | None = None
    moderation_mode: Mode = "pass_through"
    synthesizer: str | None = None
    timeout: Silence | None = None
    deadline: Deadline | None = None


# -- routes -------------------------------------------------------------------------------------------------------------------


async def ask_everybody(call: Call[TeamBody]) -> Answer:
    """Everybody's answers, when the last one has ended."""
    work = _asked(call.house, call.body)
    if call.body.stream:
        return await serve(call, await call.begun(KIND, work), grace=call.grace)
    answer = whole(await call.outcome(KIND, work))
    if V0 not in call.request.headers.get("Accept", ""):
        return answer
    as_v0 = as_json(msgspec.structs.asdict(answer) | {"responses": answer.responses_by_id})
    as_v0.content_type = V0
    return as_v0


async def ask_everybody_live(call: Call[TeamBody]) -> Answer:
    """Everybody's answers as they grow: `token`s, a `message` as each one ends, then `complete`, then `done`."""
    return await serve(call, await call.begun(KIND, _asked(call.house, call.body)), grace=call.grace)


async def ask_everybody_by_query(call: Call[None]) -> Answer:
    """The same for EventSource, which can only GET. With a Last-Event-ID it goes on, and asks nothing."""
    query: TeamQuery = call.query
    if (resumed := await serve_from(call, query.last_event_id)) is not None:
        return resumed
    body = TeamBody(
        message=query.message,
        session_id=query.session_id,
        specialists=_names(query.specialists),
        target_sockets=_names(query.target_sockets),
        moderation_mode=query.moderation_mode,
        synthesizer=query.synthesizer,
        timeout=query.timeout,
        deadline=query.deadline,
    )
    return await serve(call, await call.begun(KIND, _asked(call.house, body)), grace=RESUME_GRACE)


# -- asking -------------------------------------------------------------------------------------------------------------------


def _names(text: str | None) -> list[str] | None:
    return [one.strip() for one in text.split(",") if one.strip()] if text is not None else None


def _asked(house: House, body: TeamBody) -> Work:
    """The work that a body asks for. Raises what is wrong with it."""
    team, chat = house.team, question_of(body)
    if body.moderation_mode == "directed" and not body.target_sockets:
        raise BadRequest("target_sockets: missing; directed asks those whom it names")
    members = members_of(team, body.target_sockets or body.specialists)
    moderation = _moderation(team, body, members)
    return asking(members, team_question(chat, house.router.rules, timeout=body.timeout, moderation=moderation))


def team_question(
    chat: Chat,
    rules: Orchestration,
    *,
    timeout: float | None = None,
    otherwise: float | None = None,
    moderation: Moderation | None = None,
) -> TeamQuestion:
    """One specialist's question as everybody's. Without a `timeout` of its own it has those of the rules, or `otherwise`."""
    default = rules.timeout_settings.default
    return TeamQuestion(
        content=chat.text,
        timeout=timeout if timeout is not None else default if default is not None else otherwise,
        timeouts=rules.timeouts if timeout is None else {},
        deadline=chat.deadline,
        context=chat.context,
        history=chat.history,
        options=chat.merged_options(),
        moderation=moderation,
    )


def _moderation(team: Team, body: TeamBody, members: list[Member]) -> Moderation | None:
    mode = body.moderation_mode
    if mode not in ("synthesis", "consensus"):
        return None
    if body.synthesizer is not None:
        return Moderation(mode, members_of(team, [body.synthesizer])[0])
    ready = [one.name for one in team.answering] or [member.name for member in members]
    return Moderation(mode, team.member(usual_moderator(ready)))


def asking(members: list[Member], question: TeamQuestion) -> Work:
    """The work of asking these."""

    async def work(stream: Stream) -> None:
        telling = Telling(stream, members, question.moderation)
        async with ask_team(members, question) as events:
            async for event in events:
                telling.tell(event)

    return work
