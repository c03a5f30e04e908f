"""What is said: requests and the answers to them, as frozen values.

Field names are the wire's. A field that is None is not sent. Durations are seconds unless the name ends in `_ms`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

PROTOCOL_VERSION = 1

RequestId = str | int
DoneReason = Literal["stop", "length", "cancelled"]
Phase = Literal["queued", "loading", "prefill"]
Temperature = Annotated[float, Meta(ge=0, le=10)]
TokenCount = Annotated[int, Meta(ge=1, le=2**31 - 1)]  # what model servers take
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Deadline = Annotated[float, Meta(gt=0)]  # seconds
BackendStateName = Literal["ready", "loading", "model_missing", "down"]


class Turn(Struct, frozen=True):
    """One thing somebody said earlier."""

    role: Literal["system", "user", "assistant"]
    content: str


class Options(Struct, frozen=True, omit_defaults=True):
    """How to generate one answer. Load-time options of a model are not among them: they would reload it for everybody."""

    model: str | None = None
    temperature: Temperature | None = None
    max_tokens: TokenCount | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    format: Literal["json"] | dict[str, Any] | None = None


class Context(Struct, frozen=True, omit_defaults=True):
    """What travels with a question through a pipeline. Both spellings of the seeds are read."""

    session_id: str | None = None
    previous_specialist: str | None = None
    previous_ai: str | None = None
    previous_response: str | None = None
    pipeline_stage: int | None = None
    pipeline_position: int | None = None
    memory_hints: list[str] | None = None

    @property
    def author(self) -> str | None:
        return self.previous_specialist or self.previous_ai

    @property
    def stage(self) -> int | None:
        return self.pipeline_stage if self.pipeline_stage is not None else self.pipeline_position


# -- requests ---------------------------------------------------------------------------------------------------------


class Request(Struct, frozen=True, omit_defaults=True):
    """What every request may carry. `close` asks for the connection to be closed after the answer."""

    request_id: RequestId | None = None
    close: bool = False


class Chat(Request, frozen=True, tag="chat", omit_defaults=True):
    """A question. `message` is another name for `content`; `context` keeps keys that we do not know."""

    content: str | None = None
    message: str | None = None
    stream: bool = False
    final: Literal["full", "short"] = "full"
    context: dict[str, Any] | None = None
    history: list[Turn] | None = None
    options: Options | None = None
    deadline: Deadline | None = None
    temperature: Temperature | None = None
    max_tokens: TokenCount | None = None

    @property
    def text(self) -> str:
        return self.content if self.content is not None else (self.message or "")

    def merged_options(self) -> Options:
        """The options with the two that are also taken at top level; `options` wins."""
        options = self.options or Options()
        if options.temperature is None and self.temperature is not None:
            options = msgspec.structs.replace(options, temperature=self.temperature)
        if options.max_tokens is None and self.max_tokens is not None:
            options = msgspec.structs.replace(options, max_tokens=self.max_tokens)
        return options


class Ping(Request, frozen=True, tag="ping", omit_defaults=True):
    timestamp: float | str | None = None


class Health(Request, frozen=True, tag="health"):
    pass


class Info(Request, frozen=True, tag="info"):
    pass


class History(Request, frozen=True, tag="history", omit_defaults=True):
    """The last `limit` turns; `before` is the timestamp of the oldest turn already seen."""

    session_id: str | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 10
    before: float | None = None


class Reset(Request, frozen=True, tag="reset", omit_defaults=True):
    session_id: str | None = None


class Embed(Request, frozen=True, tag="embed", omit_defaults=True, kw_only=True):
    input: str | list[str]
    model: str | None = None


class Cancel(Request, frozen=True, tag="cancel", omit_defaults=True):
    target: RequestId | None = None


AnyRequest = Chat | Ping | Health | Info | History | Reset | Embed | Cancel

# -- answers ----------------------------------------------------------------------------------------------------------


class Usage(Struct, frozen=True):
    """Tokens as the model server counted them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Timing(Struct, frozen=True, omit_defaults=True):
    """Measured here, except tokens_per_second and load_ms, which the model server measured where it says so."""

    queued_ms: float
    total_ms: float
    first_token_ms: float | None = None
    tokens_per_second: float | None = None
    load_ms: float | None = None
    prompt_ms: float | None = None


class Reply(Struct, frozen=True, omit_defaults=True):
    request_id: RequestId | None = None


class Pong(Reply, frozen=True, tag="pong", kw_only=True):
    ai_id: str
    status: str
    pid: int
    instance: str
    timestamp: float | str | None = None


class BackendState(Struct, frozen=True):
    """The model server as a specialist sees it. `url` is null for the builtin one, `error` where nothing is wrong."""

    kind: str
    url: str | None
    state: BackendStateName
    error: str | None


class HealthResponse(Reply, frozen=True, tag="health_response", kw_only=True):
    """Every figure measured. A specialist that is not our own daemon may leave out all but `ai_id` and `pid`."""

    # Factories and not values: what equals a default value is left out of the message, and ours is always whole.
    ai_id: str
    status: Literal["healthy", "degraded", "draining"] = field(default_factory=lambda: "healthy")
    component: str = field(default_factory=str)
    model: str = field(default_factory=str)
    pid: int
    instance: str = field(default_factory=str)
    clients: int = field(default_factory=int)
    in_flight: int = field(default_factory=int)
    queued: int = field(default_factory=int)
    backend: BackendState = field(default_factory=lambda: BackendState("command", None, "ready", None))
    uptime: float | None = None
    rss_bytes: int | None = None
    loop_lag_ms: float | None = None
    answered: int = 0
    first_token_ms: float | None = None
    tokens_per_second: float | None = None
    prompt_tokens_per_second: float | None = None
    buffered_bytes: int = 0


class InfoResponse(Reply, frozen=True, tag="info_response", kw_only=True):
    ai_id: str
    component: str
    description: str
    model_provider: str
    model_name: str
    system_prompt: str
    port: int
    capabilities: list[str]
    protocol: int
    limits: dict[str, float]
    version: str
    note: str | None = None


class StoredTurn(Struct, frozen=True):
    session_id: str
    role: str
    content: str
    timestamp: float
    model: str | None


class HistoryResponse(Reply, frozen=True, tag="history_response", kw_only=True):
    conversations: list[StoredTurn]
    total: int


class ResetResponse(Reply, frozen=True, tag="reset_response", kw_only=True):
    session_id: str | None
    removed: int


class EmbedResponse(Reply, frozen=True, tag="embed_response", kw_only=True):
    embeddings: list[list[float]]
    model: str


class Cancelled(Reply, frozen=True, tag="cancelled", kw_only=True):
    target: RequestId | None


class Error(Reply, frozen=True, tag="error", kw_only=True):
    code: str
    error: str
    partial: str
    ai_id: str | None = None
    retry_after: float | None = None


class ChatResponse(Reply, frozen=True, tag="chat_response", omit_defaults=True, kw_only=True):
    """A whole answer. `response` repeats `content` for the originals' clients; `notices` say what was done differently."""

    ai_id: str
    content: str | None = None
    response: str | None = None
    thinking: str | None = None
    model: str
    context: dict[str, Any]
    usage: Usage | None = None
    timing: Timing
    latency: float
    done_reason: DoneReason
    notices: list[str] | None = None


class StreamStart(Reply, frozen=True, tag="stream_start", kw_only=True):
    ai_id: str
    model: str


class StreamStatus(Reply, frozen=True, tag="stream_status", kw_only=True, omit_defaults=True):
    phase: Phase
    position: int | None = None


class StreamChunk(Reply, frozen=True, tag="stream_chunk", omit_defaults=True, kw_only=True):
    """A piece of the answer: `content`, or `thinking` in place of it."""

    chunk_index: int
    content: str | None = None
    thinking: str | None = None


class StreamEnd(ChatResponse, frozen=True, tag="stream_end", omit_defaults=True, kw_only=True):
    metadata: dict[str, Any]


class StreamError(Reply, frozen=True, tag="stream_error", kw_only=True, omit_defaults=True):
    code: str
    error: str
    partial: str
    ai_id: str | None = None
    retry_after: float | None = None


class Heartbeat(Reply, frozen=True, tag="heartbeat"):
    pass


AnyReply = (
    Pong
    | HealthResponse
    | InfoResponse
    | HistoryResponse
    | ResetResponse
    | EmbedResponse
    | Cancelled
    | Error
    | ChatResponse
    | StreamStart
    | StreamStatus
    | StreamChunk
    | StreamEnd
    | StreamError
    | Heartbeat
)
