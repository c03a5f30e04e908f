"""One answer while it grows: what was asked, what has arrived, and the replies made from it."""

from __future__ import annotations

import time
from typing import Any, Protocol

from daemon.backends import Finish, Piece, Waiting
from protocol import names
from protocol.messages import Chat, ChatResponse, Context, DoneReason, StreamEnd, Timing, Usage


class Listener(Protocol):
    """Whoever hears an answer grow. Called on the event loop, never awaited: nobody slow holds the model server."""

    def started(self, model: str) -> None: ...
    def waiting(self, waiting: Waiting) -> None: ...
    def piece(self, piece: Piece) -> None: ...


class Answer:
    """The state of one answer. Written by the specialist; the conversation reads it, also when it was cut short.

    `session_id` is the caller's, the conversation's, or one made for this question; `earlier` says whether there may be
    turns in it; `asked` is the monotonic instant when the question arrived.
    """

    def __init__(
        self, chat: Chat, context: Context, session_id: str, name: str, model: str, *, earlier: bool, asked: float
    ) -> None:
        self.chat = chat
        self.context = context
        self.session_id = session_id
        self.name = name
        self.model = model
        self.earlier = earlier
        self.asked_at = time.time()
        self.notices: list[str] = []
        self.size = 0  # bytes so far
        self.finish: Finish | None = None
        self._content: list[str] = []
        self._thinking: list[str] = []
        self._asked = asked
        self._begun = asked
        self._first: float | None = None

    @property
    def content(self) -> str:
        if len(self._content) > 1:
            self._content = ["".join(self._content)]  # not the pieces and the whole: an answer may be megabytes
        return "".join(self._content)

    @property
    def thinking(self) -> str:
        return "".join(self._thinking)

    @property
    def first_token_ms(self) -> float | None:
        return None if self._first is None else _ms(self._first - self._begun)

    @property
    def time_left(self) -> float | None:
        """Seconds until the caller's deadline, None without one."""
        deadline = self.chat.deadline
        return None if deadline is None else max(0.0, self._asked + deadline - time.monotonic())

    def begin(self) -> None:
        """Generation starts now; what came before was queueing."""
        self._begun = time.monotonic()

    def add(self, piece: Piece) -> None:
        """Takes what arrived."""
        if self._first is None:
            self._first = time.monotonic()
        if piece.content:
            self._content.append(piece.content)
        if piece.thinking:
            self._thinking.append(piece.thinking)
        self.size += size_of(piece)

    def response(self, done_reason: DoneReason) -> ChatResponse:
        """The whole answer as one reply."""
        content = self.content
        return ChatResponse(content=content, response=content, **self._fields(done_reason))

    def stream_end(self, done_reason: DoneReason) -> StreamEnd:
        """The end of a stream; `final: short` leaves the text out, for those who have it already."""
        fields = self._fields(done_reason)
        metadata = {key: value for key, value in fields.items() if value is not None and key != "request_id"}
        text = None if self.chat.final == "short" else self.content
        return StreamEnd(content=text, response=text, metadata=metadata, **fields)

    def _fields(self, done_reason: DoneReason) -> dict[str, Any]:
        timing = self._timing()
        return {
            "request_id": self.chat.request_id,
            "ai_id": names.ai_id(self.name),
            "thinking": self.thinking or None,
            "model": self.model,
            "context": self._outgoing_context(),
            "usage": self._usage(),
            "timing": timing,
            "latency": round(timing.total_ms / 1000, 4),
            "done_reason": done_reason,
            "notices": self.notices or None,
        }

    def _outgoing_context(self) -> dict[str, Any]:
        """The caller's context, ours added; keys that we do not know are handed on."""
        context = dict(self.chat.context or {})
        context.pop("previous_response", None)  # the caller has it, and it may be long
        context.setdefault("specialist_id", names.ai_id(self.name))
        context["session_id"] = self.session_id
        if self.context.stage is not None:
            context["pipeline_stage"] = self.context.stage
        return context

    def _usage(self) -> Usage | None:
        finish = self.finish
        if finish is None or finish.prompt_tokens is None or finish.completion_tokens is None:
            return None
        return Usage(finish.prompt_tokens, finish.completion_tokens, finish.prompt_tokens + finish.completion_tokens)

    def _timing(self) -> Timing:
        finish = self.finish or Finish(done_reason="stop")
        return Timing(
            queued_ms=_ms(self._begun - self._asked),
            total_ms=_ms(time.monotonic() - self._asked),
            first_token_ms=self.first_token_ms,
            tokens_per_second=finish.tokens_per_second,
            load_ms=finish.load_ms,
            prompt_ms=finish.prompt_ms,
        )


def size_of(piece: Piece) -> int:
    """Its bytes as UTF-8."""
    text = piece.content + piece.thinking
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def shortened(piece: Piece, room: int) -> Piece:
    """As much of it as fits into `room` bytes, without half a character at the end."""

    def cut(text: str, room: int) -> str:
        return text.encode(errors="replace")[:room].decode(errors="ignore")

    thinking = cut(piece.thinking, room)
    return Piece(content=cut(piece.content, room - size_of(Piece(thinking=thinking))), thinking=thinking)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
