"""A question that names nobody: the orchestration rules say who answers, and the answer says who it was and why.

Where a rule has all of its specialists answer, the answer is one text with a section for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from protocol import names
from protocol.messages import Chat, ChatResponse, Timing
from supervisor.gateway.attempts import Hear, attempted
from supervisor.gateway.chat import DONE, KIND, ChatBody, CompleteEvent, asking, question_of, token, whole
from supervisor.gateway.frames import json_line
from supervisor.gateway.operation import Answer, Call
from supervisor.gateway.resume import serve
from supervisor.gateway.stream import Stream
from supervisor.gateway.streams import Work
from supervisor.gateway.teamchat import team_question
from supervisor.gateway.together import reason_of, said_together, usage_of
from supervisor.team.chat import Member
from supervisor.team.events import Finished
from supervisor.team.routing import SILENCE, Choice

if TYPE_CHECKING:
    from supervisor.gateway.house import House

TEAM = "team"  # who answers where several do


class RoutedBy(Struct, frozen=True, omit_defaults=True):
    """Why they were chosen: `rule` is the number of the rule from 1 on, `attempts` how many were asked until one answered."""

    why: str
    strategy: str
    rule: int | None = None
    attempts: int = 1


async def ask(call: Call[ChatBody]) -> Answer:
    """The answer of whoever the rules choose."""
    house = call.house
    work = _answering(house, question_of(call.body))
    if call.body.stream:
        return await serve(call, await call.begun(KIND, work), grace=call.grace)
    return whole(await call.outcome(KIND, work))


def _answering(house: House, question: Chat) -> Work:
    async def work(stream: Stream) -> None:
        choice = await house.router.choose(question.text)
        if choice.strategy == "all":
            await _all(house, choice, question, stream)
        else:
            await _one(house, choice, question, stream)

    return work


def _routed(choice: Choice, who: Sequence[str], attempts: int = 1) -> dict[str, Any]:
    """What the context of an answer says of how it came about."""
    number = choice.rule + 1 if choice.rule is not None else None
    routed_by = msgspec.to_builtins(RoutedBy(choice.why, choice.strategy, number, attempts))
    return {"routed": [names.specialist_id(name) for name in who], "routed_by": routed_by}


# -- one of them --------------------------------------------------------------------------------------------------


async def _one(house: House, choice: Choice, question: Chat, stream: Stream) -> None:
    async def ask(member: Member, attempt: int, hear: Hear) -> None:
        context = _routed(choice, [member.name], attempt)
        await asking(member, names.specialist_id(member.name), question, hear, context)(stream)

    await attempted(house, choice, ask)


# -- all of them --------------------------------------------------------------------------------------------------


async def _all(house: House, choice: Choice, question: Chat, stream: Stream) -> None:
    pieces: list[str] = []

    def say(name: str, text: str) -> None:
        stream.speaks()
        stream.append("token", json_line(token(names.specialist_id(name) if name else TEAM, text, len(pieces))))
        pieces.append(text)

    asked = team_question(question, house.router.rules, otherwise=SILENCE)
    finished = await said_together([house.team.member(name) for name in choice.chosen], asked, say)
    stream.append("complete", json_line(_complete(choice, finished, "".join(pieces))))
    stream.append(*DONE)


def _complete(choice: Choice, finished: Finished, content: str) -> CompleteEvent:
    """The answers of all as one."""
    said, missing = finished.responses, [*finished.timed_out, *finished.failed]
    context = _routed(choice, [one.name for one in said])
    context["failed"] = {one.specialist_id: one.error.error for one in missing if one.error is not None}
    summary = ChatResponse(
        ai_id=TEAM,
        model=", ".join(dict.fromkeys(one.model for one in said if one.model)),
        context=context,
        usage=usage_of(finished),
        timing=Timing(queued_ms=0.0, total_ms=round(finished.elapsed_time * 1000, 1)),
        latency=finished.elapsed_time,
        done_reason=reason_of(finished),
    )
    told = msgspec.to_builtins(summary)
    del told["type"]
    return CompleteEvent("complete", content, TEAM, told)
