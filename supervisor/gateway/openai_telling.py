"""Answers as events of OpenAI's protocol: of one specialist, or of many as one text.

Events have no names, as that protocol's clients expect. The last one is [DONE], and only after a success.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Protocol

import msgspec
from msgspec import UNSET, Struct

from protocol.errors import PeerError, ProtocolError
from protocol.messages import AnyReply, Chat, StreamChunk, StreamEnd, Usage
from supervisor.gateway.frames import json_line
from supervisor.gateway.openai_wire import (
    Answered,
    Chunk,
    ChunkChoice,
    Completion,
    CompletionChoice,
    Delta,
    FinishReason,
    error_event,
)
from supervisor.gateway.stream import Stream
from supervisor.gateway.team import reached
from supervisor.gateway.together import reason_of, said_together, usage_of
from supervisor.gateway.vocabulary import Event, Vocabulary
from supervisor.team.chat import Member, TeamQuestion

KIND = "openai"
DONE: Event = ("", b"[DONE]")


class Telling(Protocol):
    """Whoever makes this protocol's events of an answer."""

    def say(self, text: str) -> None: ...
    def think(self, text: str) -> None: ...
    def end(self, reason: FinishReason, usage: Usage | None) -> None: ...


class Live:
    """An answer as chunks, each as it comes."""

    def __init__(self, stream: Stream, model: str, *, with_usage: bool) -> None:
        self._stream = stream
        self._id, self._created, self._model = _identity(stream), int(stream.head.created), model
        self._with_usage = with_usage
        self._is_begun = False

    def say(self, text: str) -> None:
        self._append(Delta(content=text))

    def think(self, text: str) -> None:
        self._append(Delta(reasoning_content=text))

    def end(self, reason: FinishReason, usage: Usage | None) -> None:
        self._append(Delta(), reason)
        if self._with_usage and usage is not None:
            self._stream.append("", json_line(Chunk(self._id, self._created, self._model, [], usage)))
        self._stream.append(*DONE)

    def _append(self, delta: Delta, reason: FinishReason | None = None) -> None:
        if not self._is_begun:
            # With the first piece and not before: what fails without one is answered by a status.
            self._is_begun = True
            self._stream.speaks()
            self._append(Delta(role="assistant", content=""))
        usage = None if self._with_usage else UNSET
        chunk = Chunk(self._id, self._created, self._model, [ChunkChoice(delta, reason)], usage)
        self._stream.append("", json_line(chunk))


class Whole:
    """An answer as one event."""

    def __init__(self, stream: Stream, model: str) -> None:
        self._stream = stream
        self._model = model
        self._said: list[str] = []
        self._thought: list[str] = []

    def say(self, text: str) -> None:
        self._stream.speaks()
        self._said.append(text)

    def think(self, text: str) -> None:
        self._stream.speaks()
        self._thought.append(text)

    def end(self, reason: FinishReason, usage: Usage | None) -> None:
        message = Answered("".join(self._said), reasoning_content="".join(self._thought) or None)
        completion = Completion(
            id=_identity(self._stream),
            created=int(self._stream.head.created),
            model=self._model,
            choices=[CompletionChoice(message, reason)],
            usage=usage or UNSET,
        )
        self._stream.append("", json_line(completion))


def _identity(stream: Stream) -> str:
    return f"chatcmpl-{stream.head.id}"


# -- asking -------------------------------------------------------------------------------------------------------------------


async def tell_one(
    member: Member, question: Chat, telling: Telling, hear: Callable[[AnyReply], None] = lambda _: None
) -> None:
    """Asks one specialist; `hear` is told of every reply. Raises what it fails with."""
    async with reached(member) as connection, aclosing(connection.ask(question)) as replies:
        async for reply in replies:
            hear(reply)
            match reply:
                case StreamChunk(content=str(text)):
                    telling.say(text)
                case StreamChunk(thinking=str(text)):
                    telling.think(text)
                case StreamEnd():
                    telling.end("length" if reply.done_reason == "length" else "stop", reply.usage)
                    return
    raise PeerError(f"{member.name} ended the answer without an end")


async def tell_all(members: list[Member], question: TeamQuestion, telling: Telling) -> None:
    """Asks all of these. Raises what the first one failed with where nobody gave a whole answer."""
    finished = await said_together(members, question, lambda _, text: telling.say(text))
    telling.end(reason_of(finished), usage_of(finished))


# -- the vocabulary -----------------------------------------------------------------------------------------------------------


class _Choice(Struct):
    delta: Delta = msgspec.field(default_factory=Delta)


class _Event(Struct):
    """What is read of an event of ours again."""

    choices: list[_Choice] = []


def _fold(events: Iterable[Event]) -> str:
    """The text of the answer so far."""
    read = msgspec.json.Decoder(_Event).decode
    told = [read(data) for name, data in events if (name, data) != DONE]
    return "".join(choice.delta.content or "" for one in told for choice in one.choices)


def _failed(error: ProtocolError, text: str) -> list[Event]:
    return [("", error_event(error, has_text=bool(text)))]


# A reader that fell behind cannot be told so here: it is given what it lacks from disk, or let go.
VOCABULARY = Vocabulary(name=KIND, fold=_fold, failed=_failed)
