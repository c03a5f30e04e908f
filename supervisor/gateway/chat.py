"""One specialist asked over HTTP: the whole answer, or its tokens as server-sent events in the vocabulary of the originals.

Their clients disagree about where a token stands, so a `token` event carries it in each of their places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import replace

from protocol.codec import read_context
from protocol.errors import BadRequest, PeerError, ProtocolError
from protocol.messages import (
    AnyReply,
    Chat,
    ChatResponse,
    Deadline,
    Options,
    Phase,
    StreamChunk,
    StreamEnd,
    StreamStatus,
    Temperature,
    TokenCount,
    Turn,
)
from supervisor.gateway.frames import json_line
from supervisor.gateway.operation import REQUIRED, RESUME_GRACE, Answer, Call
from supervisor.gateway.problem import code_of
from supervisor.gateway.resume import serve, serve_from
from supervisor.gateway.stream import Stream
from supervisor.gateway.streams import Work, ended_by
from supervisor.gateway.team import reached
from supervisor.gateway.vocabulary import Event, Vocabulary
from supervisor.team.chat import Member
from supervisor.team.events import ModerationPhase

KIND = "chat"
DONE: Event = ("done", b"")


class ChatBody(Struct, frozen=True):
    """A question. `message` and `content` are one; the rest is what the wire's `chat` takes.

    With `stream` the whole answer comes as events, too. With `resume` it goes on for ten seconds when its caller leaves.
    """

    message: str | None = None
    content: str | None = None
    session_id: str | None = None
    context: dict[str, Any] | None = None
    history: list[Turn] | None = None
    options: Options | None = None
    temperature: Temperature | None = None
    max_tokens: TokenCount | None = None
    deadline: Deadline | None = None
    stream: bool = False
    resume: bool = False


# What a question must have besides the types of its fields, as a description says it.
_TEXT = {"type": "string", "pattern": r"\S"}
WITH_TEXT = Meta(
    extra_json_schema={"anyOf": [{"required": [name], "properties": {name: _TEXT}} for name in ("message", "content")]}
)
Question = Annotated[ChatBody, WITH_TEXT]


class ChatQuery(Struct, frozen=True):
    """A question in a query, for EventSource. `last_event_id` instead goes on with an answer that was asked for before."""

    message: Annotated[str | None, Meta(extra=REQUIRED, extra_json_schema={"pattern": r"\S"})] = None
    session_id: str | None = None
    last_event_id: str | None = None


class TokenData(Struct, frozen=True):
    token: str


class TokenNumbers(Struct, frozen=True):
    chunk_index: int


class TokenEvent(Struct, frozen=True):
    """A piece of an answer, in every place where one of the originals' clients looks for it.

    With a `phase` it is a piece of what is made of everybody's answers.
    """

    event: str
    data: TokenData
    token: str
    specialist_id: str
    type: str
    content: str
    metadata: TokenNumbers
    phase: ModerationPhase | UnsetType = UNSET


class ThinkingEvent(Struct, frozen=True):
    """A piece of what the model thought."""

    type: str
    specialist_id: str
    content: str


class StatusEvent(Struct, frozen=True):
    """The answer waits, and this is why. `position` in the queue, where there is one."""

    type: str
    specialist_id: str
    phase: Phase
    position: int | None


class CompleteEvent(Struct, frozen=True):
    """The whole answer. `summary` is all else of it, by the names of the wire's `chat_response`."""

    type: str
    content: str
    specialist_id: str
    summary: dict[str, Any]


class SoFar(Struct, frozen=True):
    """What has been said of an answer until now."""

    specialist_id: str
    content: str


class ResetEvent(Struct, frozen=True):
    """This reader fell behind: `lost` events are gone, and `snapshot` is what they add up to with all before."""

    type: str
    reason: str
    lost: int
    snapshot: SoFar


class ErrorEvent(Struct, frozen=True):
    """The answer ended without being whole; `partial` is what had arrived."""

    type: str
    error: str
    code: str
    specialist_id: str
    partial: str
    retry_after: float | None


EVENTS = {
    "token": (TokenEvent,),
    "thinking": (ThinkingEvent,),
    "status": (StatusEvent,),
    "complete": (CompleteEvent,),
    "error": (ErrorEvent,),
    "done": ("",),
    "stream_reset": (ResetEvent,),
}

# -- routes -------------------------------------------------------------------------------------------------------------------


async def ask(call: Call[ChatBody]) -> Answer:
    """The whole answer of one specialist."""
    body, spelling = call.body, call.part()
    question = question_of(body)
    member = call.house.team.member(spelling)
    if body.stream:
        return await _answer_live(call, member, spelling, question)
    return whole(await call.outcome(KIND, asking(member, spelling, question)))


async def ask_live(call: Call[ChatBody]) -> Answer:
    """The answer of one specialist as server-sent events: `token`s, then `complete` or `error`, then `done`."""
    spelling = call.part()
    question = question_of(call.body)
    return await _answer_live(call, call.house.team.member(spelling), spelling, question)


async def ask_by_query(call: Call[None]) -> Answer:
    """The same for EventSource, which can only GET. With a Last-Event-ID it goes on, and asks nothing."""
    query: ChatQuery = call.query
    if (resumed := await serve_from(call, query.last_event_id)) is not None:
        return resumed
    spelling = call.part()
    question = question_of(ChatBody(message=query.message, session_id=query.session_id))
    member = call.house.team.member(spelling)
    stream = await call.begun(KIND, asking(member, spelling, question))
    return await serve(call, stream, grace=RESUME_GRACE)


async def _answer_live(call: Call[ChatBody], member: Member, spelling: str, question: Chat) -> Answer:
    stream = await call.begun(KIND, asking(member, spelling, question))
    return await serve(call, stream, grace=call.grace)


# -- asking -------------------------------------------------------------------------------------------------------------------


def question_of(body: ChatBody) -> Chat:
    """The body as the wire's question. Raises BadRequest with the field's path."""
    text = next((said for said in (body.message, body.content) if said and not said.isspace()), None)
    if text is None:
        raise BadRequest("message: missing; say what to answer")
    context = body.context
    if body.session_id is not None:
        context = {**(context or {}), "session_id": body.session_id}
    read_context(context)
    return Chat(
        content=text,
        stream=True,
        context=context,
        history=body.history,
        options=body.options,
        deadline=body.deadline,
        temperature=body.temperature,
        max_tokens=body.max_tokens,
    )


def asking(
    member: Member,
    spelling: str,
    question: Chat,
    hear: Callable[[AnyReply], None] = lambda _: None,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> Work:
    """The work of asking one specialist, whose name the events repeat as the caller spelt it.

    `hear` is told of every reply; `about` is put into the context of the answer.
    """

    async def work(stream: Stream) -> None:
        async with reached(member) as connection, aclosing(connection.ask(question)) as replies:
            async for reply in replies:
                hear(reply)
                if isinstance(reply, StreamChunk) and reply.chunk_index == 0:
                    stream.speaks()
                match reply:
                    case StreamChunk(content=str(text)):
                        stream.append("token", json_line(token(spelling, text, reply.chunk_index)))
                    case StreamChunk(thinking=str(text)):
                        stream.append("thinking", json_line(ThinkingEvent("thinking", spelling, text)))
                    case StreamStatus():
                        status = StatusEvent("status", spelling, reply.phase, reply.position)
                        stream.append("status", json_line(status))
                    case StreamEnd():
                        stream.append("complete", json_line(_complete(spelling, reply, about)))
                        stream.append(*DONE)
                        return
        raise PeerError(f"{member.name} ended the answer without an end")

    return work


def token(spelling: str, text: str, index: int, phase: ModerationPhase | UnsetType = UNSET) -> TokenEvent:
    """A piece of the answer of one whose name is spelt so."""
    return TokenEvent("token", TokenData(text), text, spelling, "chunk", text, TokenNumbers(index), phase)


def _complete(spelling: str, end: StreamEnd, about: Mapping[str, Any]) -> CompleteEvent:
    told = msgspec.to_builtins(replace(end, metadata={}, request_id=None))
    told["context"] |= about
    content = told.pop("content", "")
    for name in ("type", "response", "metadata"):
        told.pop(name, None)
    return CompleteEvent("complete", content, spelling, told)


def whole(events: list[Event]) -> ChatResponse:
    """The answer that a stream's last events tell of. Raises what it failed with."""
    for name, data in events:
        if name == "complete":
            complete = msgspec.json.decode(data, type=CompleteEvent)
            said = complete.summary | {"content": complete.content, "response": complete.content}
            return msgspec.convert(said, ChatResponse)
        if name == "error":
            error = msgspec.json.decode(data, type=ErrorEvent)
            raise ended_by(error.code, error.error, error.partial, error.retry_after)
    raise PeerError("the answer ended without an end")


# -- the vocabulary -----------------------------------------------------------------------------------------------------------


def _fold(events: Iterable[Event]) -> SoFar:
    """The text of the answer so far, and whose it is."""
    pieces, who = [], ""
    for name, data in events:
        if name == "token":
            piece = msgspec.json.decode(data, type=TokenEvent)
            pieces.append(piece.content)
            who = piece.specialist_id
    return SoFar(who, "".join(pieces))


def _failed(error: ProtocolError, so_far: SoFar) -> list[Event]:
    partial = error.partial or so_far.content
    said = ErrorEvent("error", error.sentence, code_of(error), so_far.specialist_id, partial, error.retry_after)
    return [("error", json_line(said)), DONE]


def _behind(lost: int, so_far: SoFar) -> Event:
    return "stream_reset", json_line(ResetEvent("stream_reset", "this reader fell behind", lost, so_far))


VOCABULARY = Vocabulary(name=KIND, fold=_fold, failed=_failed, behind=_behind)
