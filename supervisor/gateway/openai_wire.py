"""The shapes of OpenAI's protocol, and what they mean as ours. Pure.

Its clients send the whole conversation each time, so that nothing is remembered of them here. What a field of theirs would ask
for and we do not know is left aside, as other servers do; what would change the answer and cannot be is refused.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, Struct, UnsetType

from protocol.errors import BadRequest, ProtocolError
from protocol.messages import Chat, Options, Temperature, TokenCount, Turn, Usage
from supervisor.gateway.frames import json_line
from supervisor.gateway.problem import Failure, failure_of
from supervisor.gateway.streams import ended_by

FinishReason = Literal["stop", "length"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Thinking = bool | Literal["low", "medium", "high", "max"]

THINKING: dict[Effort, Thinking] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}

# -- requests -----------------------------------------------------------------------------------------------------------------


class Part(Struct, frozen=True):
    """A part of a message. Only text can be answered."""

    type: str
    text: str | None = None


class Message(Struct, frozen=True):
    """What somebody said. `name` and `tool_call_id` say which tool a result is of."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None


class JsonSchema(Struct, frozen=True):
    schema: dict[str, Any] | None = None


class ResponseFormat(Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class CompletionBody(Struct, frozen=True, kw_only=True):
    """A conversation to be gone on with. `model` is a specialist, `team` or `auto`; other parameters are ignored.

    Behind a slash of `model` stands the model server's model that is to answer in the place of the specialist's own.
    """

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: Temperature | None = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None


class EmbeddingBody(Struct, frozen=True, kw_only=True):
    """Texts to be made vectors of. `model` as in a completion."""

    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


def question_of(body: CompletionBody, model: str | None) -> Chat:
    """The conversation as the wire's question. Raises BadRequest with the field's path."""
    if body.n is not None and body.n != 1:
        raise BadRequest("n: one answer is given to a question; leave it out")
    if not body.messages:
        raise BadRequest("messages: empty; say what to answer")
    *earlier, last = [_turn(message, f"messages[{at}]") for at, message in enumerate(body.messages)]
    if last.role != "user":
        raise BadRequest(f"messages[{len(earlier)}].role: the last message must be the user's, or a tool's")
    if not last.content.strip():
        raise BadRequest(f"messages[{len(earlier)}].content: empty; say what to answer")
    options = Options(
        model=model,
        temperature=body.temperature,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        think=THINKING[body.reasoning_effort] if body.reasoning_effort is not None else None,
        seed=body.seed,
        stop=body.stop,
        format=_format(body.response_format),
    )
    return Chat(content=last.content, stream=True, history=[turn for turn in earlier if turn.content], options=options)


def _turn(message: Message, path: str) -> Turn:
    text = _text(message, path)
    match message.role:
        case "system" | "developer":
            return Turn("system", text)
        case "tool" | "function":
            which = message.name or message.tool_call_id
            return Turn("user", f"The tool {which} returned:\n{text}" if which else f"A tool returned:\n{text}")
        case "user" | "assistant":
            return Turn(message.role, text)


def _text(message: Message, path: str) -> str:
    content = message.content
    if not isinstance(content, list):
        return content or ""
    for at, part in enumerate(content):
        if part.type not in ("text", "refusal"):
            raise BadRequest(f"{path}.content[{at}].type: {part.type[:64]!r} is not supported: send text")
    return "\n".join(part.text for part in content if part.text)


def _format(wanted: ResponseFormat | None) -> Literal["json"] | dict[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return "json"
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise BadRequest("response_format.json_schema.schema: missing")
    return wanted.json_schema.schema


# -- answers ------------------------------------------------------------------------------------------------------------------


class Delta(Struct, frozen=True, omit_defaults=True):
    """A piece of an answer: content, or thinking in place of it; the first one has the role."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None


class ChunkChoice(Struct, frozen=True):
    delta: Delta
    finish_reason: FinishReason | None = None
    index: int = 0


class Chunk(Struct, frozen=True):
    """One event of a stream. `usage` is null in all but the last one, where it was asked for."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    object: str = "chat.completion.chunk"


class Answered(Struct, frozen=True, omit_defaults=True):
    """The message of a whole answer."""

    content: str
    role: str = msgspec.field(default_factory=lambda: "assistant")
    reasoning_content: str | None = None


class CompletionChoice(Struct, frozen=True):
    message: Answered
    finish_reason: FinishReason
    index: int = 0


class Completion(Struct, frozen=True):
    """A whole answer. There is no `usage` where the model server did not count."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType = UNSET
    object: str = "chat.completion"


class Model(Struct, frozen=True):
    id: str
    created: int
    object: str = "model"
    owned_by: str = "chorus"


class Models(Struct, frozen=True):
    data: list[Model]
    object: str = "list"


class Embedding(Struct, frozen=True):
    """`embedding` is numbers, or as base64 their bytes as 32-bit floats, the least significant first."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class Embeddings(Struct, frozen=True):
    """One vector for each text, and the model that made them."""

    data: list[Embedding]
    model: str
    object: str = "list"


# -- errors -------------------------------------------------------------------------------------------------------------------

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# Once more would only take as long once more, or is not wanted.
IN_VAIN = frozenset({"model_missing", "stalled", "deadline", "empty_answer", "cancelled"})
# What the wire's sentences call otherwise than this protocol does.
PARAMETERS = {"options.think": "reasoning_effort"}


class ErrorBody(Struct, frozen=True, kw_only=True):
    """What went wrong: a sentence, whose fault it is, the parameter where it is one's, and the wire's code."""

    message: str
    type: str
    param: str | None
    code: str
    partial: str | UnsetType = UNSET
    retry_after: float | UnsetType = UNSET
    trace_id: str | UnsetType = UNSET


class ErrorAnswer(Struct, frozen=True):
    error: ErrorBody


EVENTS = {"": (Chunk, ErrorAnswer, "[DONE]")}


def as_error(failure: Failure) -> web.Response:
    """A failure in this protocol's form, as its clients sort it: what is wrong with a request is a 400 to them."""
    status = 400 if failure.status == 422 else failure.status
    answer = web.Response(status=status, body=json_line(error_of(failure)), content_type="application/json")
    if failure.code in IN_VAIN:
        answer.headers["X-Should-Retry"] = "false"  # OpenAI's own clients ask again after every 5xx
    return answer


def error_of(failure: Failure) -> ErrorAnswer:
    kind = TYPES.get(failure.status, "server_error" if failure.status >= 500 else "invalid_request_error")
    param, message = _parameter(failure)
    body = ErrorBody(
        message=message,
        type=kind,
        param=param,
        code=failure.code,
        partial=failure.partial or UNSET,
        retry_after=failure.retry_after if failure.retry_after is not None else UNSET,
        trace_id=failure.trace_id or UNSET,
    )
    return ErrorAnswer(body)


def error_event(error: ProtocolError, *, has_text: bool) -> bytes:
    """The last event of a stream that failed; `has_text` where its reader was given what had arrived."""
    failure = failure_of(error)
    return json_line(error_of(msgspec.structs.replace(failure, partial="") if has_text else failure))


def raised(data: bytes) -> ProtocolError | None:
    """The failure that an event says; None for one that says another thing."""
    if not data.startswith(b'{"error":'):
        return None
    body = msgspec.json.decode(data, type=ErrorAnswer).error
    return ended_by(body.code, body.message, body.partial or "", body.retry_after or None)


def _parameter(failure: Failure) -> tuple[str | None, str]:
    """The path that a sentence of the kind `messages[0].role: …` begins with, and the sentence in this protocol's terms."""
    if failure.code == "model_not_found":
        return "model", failure.sentence
    path, found, rest = failure.sentence.partition(": ")
    if not found or failure.code != "bad_request" or " " in path:
        return None, failure.sentence
    path = PARAMETERS.get(path, path)
    return path, f"{path}: {rest}"
