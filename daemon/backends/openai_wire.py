"""What is sent to a server with OpenAI's protocol, and what its events mean. Pure.

Only the common subset of llama.cpp, vLLM, LM Studio and their like is used. Servers differ in where they put
the finish reason, the usage and an error, and in what they call thinking: all of these places are looked at.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct

from daemon.backends import Finish, Piece, Prompt, http
from daemon.backends.answering import empty, truncated
from daemon.backends.http import UNREADABLE
from daemon.backends.thinking import ThinkSplitter
from protocol.errors import ModelError, ProtocolError
from protocol.messages import Options, Turn
from protocol.settings import LOAD_TIME_OPTIONS, SpecialistConfig

# Ollama's names that mean something else here, or nothing; what stands in the answer's options is set by us.
NOT_OURS = LOAD_TIME_OPTIONS | {"num_predict", "stream", "stream_options", "messages", "model"}

DONE_REASONS = {"stop": "stop", "length": "length", "tool_calls": "stop", "function_call": "stop"}
EFFORTS = {True: "medium", False: "none", "low": "low", "medium": "medium", "high": "high", "max": "high"}
END = b"[DONE]"

# -- requests ---------------------------------------------------------------------------------------------------------


def completion_body(model: str, prompt: Prompt, config: SpecialistConfig) -> dict[str, Any]:
    """For POST /v1/chat/completions."""
    options = prompt.options
    system = [Turn(role="system", content=prompt.system)] if prompt.system else []
    body = {key: value for key, value in {**config.backend.options, **config.options}.items() if key not in NOT_OURS}
    body |= {
        "model": model,
        "messages": [*system, *prompt.turns],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": options.max_tokens or config.limits.answer_tokens,
    }
    for field in ("temperature", "seed", "stop"):
        if (value := getattr(options, field)) is not None:
            body[field] = value
    # Servers that know no reasoning refuse the field, so it is sent only where somebody asked.
    if options.think is not None:
        body["reasoning_effort"] = EFFORTS[options.think]
    if options.format is not None:
        body["response_format"] = _response_format(options)
    return body


def _response_format(options: Options) -> dict[str, Any]:
    if options.format == "json":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": options.format}}


# -- answers ----------------------------------------------------------------------------------------------------------


class Delta(Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Choice(Struct, gc=False):
    delta: Delta | None = None
    finish_reason: str | None = None


class Usage(Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Timings(Struct, gc=False):
    """llama.cpp's own figures."""

    predicted_per_second: float | None = None
    prompt_per_second: float | None = None
    prompt_ms: float | None = None


class Event(Struct, gc=False):
    """One `data:` frame. `choices` is empty in the frame that brings the usage."""

    error: Any = UNSET
    choices: list[Choice] | None = None
    usage: Usage | None = None
    timings: Timings | None = None


_decode = msgspec.json.Decoder(Event).decode


class OpenAIReading:
    """The lines of one SSE answer into text and its end.

    `finished` once a finish_reason was seen: then the answer is good, whatever becomes of the rest of the
    stream, which is read for the usage alone.
    """

    def __init__(self, url: str) -> None:
        self.over = False
        self.finished = False
        self._url = url
        self._splitter = ThinkSplitter()
        self._said = False
        self._thought = False
        self._reason: str | None = None
        self._usage = Usage()
        self._timings = Timings()
        self._failure: ProtocolError | None = None

    def take(self, lines: list[bytes]) -> Piece | None:
        content: list[str] = []
        thinking: list[str] = []
        for line in lines:
            self._take_line(line, content, thinking)
            if self.over:
                break
        return self._piece("".join(content), "".join(thinking))

    def rest(self) -> Piece | None:
        thinking, content = self._splitter.rest()
        return self._piece(content, thinking)

    def finish(self) -> Finish:
        if self._failure is not None:
            raise self._failure
        if self._reason is None:
            raise truncated(self._url)
        done_reason = DONE_REASONS.get(self._reason)
        if done_reason is None:
            raise ModelError(
                f"the model ended its answer for the reason {self._reason!r}: ask differently, or another model"
            )
        if not self._said:
            raise empty(done_reason, thought=self._thought)
        return Finish(
            done_reason=done_reason,
            prompt_tokens=self._usage.prompt_tokens,
            completion_tokens=self._usage.completion_tokens,
            tokens_per_second=self._timings.predicted_per_second,
            prompt_tokens_per_second=self._timings.prompt_per_second,
            prompt_ms=self._timings.prompt_ms,
        )

    def _take_line(self, line: bytes, content: list[str], thinking: list[str]) -> None:
        """One line of the stream. Comments, empty lines and other fields are passed over."""
        name, colon, data = line.partition(b":")
        if line.startswith(b"{"):  # no event stream: an error after a 200, mostly
            data = line
        elif name == b"error" and colon:  # llama.cpp before September 2025
            self._fail(self._model_error(http.said_by(data)))
            return
        elif name != b"data":
            return
        data = data.strip()
        if not data:
            return
        if data == END:
            self.over = True
            return
        try:
            event = _decode(data)
        except UNREADABLE as error:
            self._fail(ModelError(f"{self._url} sent an event that cannot be read ({error}): is it a model server?"))
            return
        if event.error is not UNSET and event.error is not None:
            self._fail(self._model_error(http.unwrapped(event.error)))
            return
        self._usage = event.usage or self._usage
        self._timings = event.timings or self._timings
        for choice in event.choices or ():
            if choice.finish_reason:
                self._reason = choice.finish_reason
                self.finished = True
            if (delta := choice.delta) is not None:
                content.append(delta.content or "")
                thinking.append(delta.reasoning or delta.reasoning_content or "")

    def _piece(self, content: str, thinking: str) -> Piece | None:
        if content and not self._splitter.settled:
            inline, content = self._splitter.split(content)
            thinking += inline
        self._said = self._said or bool(content)
        self._thought = self._thought or bool(thinking)
        return Piece(content, thinking) if content or thinking else None

    def _model_error(self, said: str) -> ModelError:
        return ModelError(f"the model failed in the middle of the answer ({http.brief(said)}): see the server's log")

    def _fail(self, failure: ProtocolError) -> None:
        # After the finish reason the answer is whole, and an error is about something else.
        if not self.finished:
            self._failure = failure
        self.over = True
