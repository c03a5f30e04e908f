"""A question that names nobody: the orchestration rules say who answers, and the answer says who it was and why.

Where a rule has all of its specialists answer, the answer is one text: each one's own under its name. Where one fails before
its first token, and the rules allow it, the next best is asked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from msgspec import Struct

from protocol import names
from protocol.errors import CallerError, ProtocolError, Stalled, from_wire
from protocol.messages import AnyReply, Chat, ChatResponse, Heartbeat, StreamChunk, StreamStatus, Timing, Usage
from supervisor.gateway.chat import DONE, KIND, ChatBody, CompleteEvent, asking, question_of, token, whole
from supervisor.gateway.frames import json_line
from supervisor.gateway.operation import Answer, Call
from supervisor.gateway.resume import serve
from supervisor.gateway.stream import Stream
from supervisor.gateway.streams import Work
from supervisor.team.chat import TeamQuestion, ask_team
from supervisor.team.events import Entry, Token
from supervisor.team.routing import SILENCE, Choice

if TYPE_CHECKING:
    from supervisor.gateway.house import House

TEAM = "team"  # who answers where several do
AGAIN_AFTER = 0.2  # seconds before one is asked a second time


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
    rules, ranked = house.router.rules, [*choice.chosen, *choice.others]
    for attempt, name in enumerate(itertools.cycle(ranked), 1):
        if attempt > len(ranked):
            await anyio.sleep(AGAIN_AFTER)
        listening = Listening(name, rules.timeout_of(name))
        context = _routed(choice, [name], attempt)
        try:
            with house.router.gives(name), listening.patience():
                member = house.team.member(name)
                await asking(member, names.specialist_id(name), question, listening.hear, context)(stream)
            return
        except ProtocolError as error:
            if listening.spoke or isinstance(error, CallerError) or attempt >= rules.retry_policy.attempts:
                raise


class Listening:
    """How one answer comes along: whether it has begun, and whether it has been silent for too long."""

    def __init__(self, name: str, timeout: float | None) -> None:
        self.spoke = False
        self._name = name
        self._timeout = timeout if timeout is not None else math.inf
        self._scope = anyio.CancelScope()

    def hear(self, reply: AnyReply) -> None:
        match reply:
            case Heartbeat():
                return  # its process lives; its answer does not grow
            case StreamChunk():
                self.spoke = True
        is_loading = isinstance(reply, StreamStatus) and reply.phase == "loading"
        self._scope.deadline = math.inf if is_loading else anyio.current_time() + self._timeout

    @contextmanager
    def patience(self) -> Iterator[None]:
        """The time of the answer. Raises Stalled for one that was silent for too long."""
        self._scope.deadline = anyio.current_time() + self._timeout
        with self._scope:
            yield
        if self._scope.cancelled_caught:
            raise Stalled(
                f"{self._name} was silent for {self._timeout:g} s: raise timeout_settings, or see chorus models"
            )


# -- all of them --------------------------------------------------------------------------------------------------


async def _all(house: House, choice: Choice, question: Chat, stream: Stream) -> None:
    timeout = house.router.rules.timeout_settings.default
    asked = TeamQuestion(
        content=question.text,
        timeout=timeout if timeout is not None else SILENCE,
        deadline=question.deadline,
        context=question.context,
        history=question.history,
        options=question.merged_options(),
    )
    said: list[Entry] = []
    missing: list[Entry] = []
    began = anyio.current_time()
    async with ask_team([house.team.member(name) for name in choice.chosen], asked) as events:
        async for event in events:
            if isinstance(event, Token):
                stream.speaks()
            elif isinstance(event, Entry) and event.error is not None:
                missing.append(event)
            elif isinstance(event, Entry):
                text = _under_its_name(event, is_first=not said)
                stream.append("token", json_line(token(event.specialist_id, text, len(said))))
                said.append(event)
    took = round(anyio.current_time() - began, 3)
    stream.append("complete", json_line(_complete(choice, said, missing, took)))
    stream.append(*DONE)


def _under_its_name(entry: Entry, *, is_first: bool) -> str:
    return ("" if is_first else "\n\n") + f"{entry.specialist_id}:\n{entry.content}"


def _complete(choice: Choice, said: list[Entry], missing: list[Entry], took: float) -> CompleteEvent:
    """The answers of all as one, after so many seconds. Raises what one of them failed with where nobody answered."""
    if not said:
        first = next(one.error for one in missing if one.error is not None)
        raise from_wire(first.code, f"nobody answered: {first.error}")
    context = _routed(choice, [one.name for one in said])
    context["failed"] = {one.specialist_id: one.error.error for one in missing if one.error is not None}
    summary = ChatResponse(
        ai_id=TEAM,
        model=", ".join(dict.fromkeys(one.model for one in said if one.model)),
        context=context,
        usage=_sum([one.usage for one in said if one.usage is not None]),
        timing=Timing(queued_ms=0.0, total_ms=round(took * 1000, 1)),
        latency=took,
        done_reason="stop",
    )
    told = msgspec.to_builtins(summary)
    del told["type"]
    content = "".join(_under_its_name(entry, is_first=not number) for number, entry in enumerate(said))
    return CompleteEvent("complete", content, TEAM, told)


def _sum(usages: list[Usage]) -> Usage | None:
    if not usages:
        return None
    return Usage(
        prompt_tokens=sum(one.prompt_tokens for one in usages),
        completion_tokens=sum(one.completion_tokens for one in usages),
        total_tokens=sum(one.total_tokens for one in usages),
    )
