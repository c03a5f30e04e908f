"""What is sent to Ollama and what its lines mean. Pure.

Shapes from Ollama's `api/types.go`. One Struct reads the lines of /api/chat and of /api/generate.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct

from daemon.backends import Finish, Piece, Prompt, http
from daemon.backends.answering import empty, truncated
from daemon.backends.http import UNREADABLE
from daemon.backends.thinking import ThinkSplitter
from protocol.errors import BadRequest, ModelError, ProtocolError
from protocol.messages import Options, Turn
from protocol.settings import LOAD_TIME_OPTIONS, SpecialistConfig

MOST_TOKENS = 2**31 - 1  # what Ollama's options can hold

# -- requests ---------------------------------------------------------------------------------------------------------


def answer_limit(config: SpecialistConfig, options: Options) -> int:
    """The most tokens of this answer. There always is a limit: Ollama's own is ten times the context."""
    return min(options.max_tokens or config.limits.answer_tokens, MOST_TOKENS)


def generation_options(config: SpecialistConfig, options: Options) -> dict[str, Any]:
    """The team's profile, what this specialist adds, what this request adds.

    Only the profile may hold options that load a model anew, and it is the same in every request of
    everybody.
    """
    merged = dict(config.backend.options)
    merged |= {key: value for key, value in config.options.items() if key not in LOAD_TIME_OPTIONS}
    if options.temperature is not None:
        merged["temperature"] = options.temperature
    if options.seed is not None:
        merged["seed"] = options.seed
    if options.stop is not None:
        merged["stop"] = [options.stop] if isinstance(options.stop, str) else options.stop
    merged["num_predict"] = answer_limit(config, options)
    return merged


def thinking_wish(model: str, options: Options, can_think: bool | None) -> dict[str, Any]:
    """The field `think`: left out it would mean true on models that can, so it is false unless asked for.

    Raises BadRequest where a model that cannot think is asked to. `can_think` None means that the server does
    not say.
    """
    if can_think is False:
        if options.think:
            raise BadRequest(f"options.think: {model} cannot think; leave it out, or name a model that can")
        return {}
    return {"think": False if options.think is None else options.think}


def chat_body(model: str, prompt: Prompt, config: SpecialistConfig, can_think: bool | None) -> dict[str, Any]:
    """For POST /api/chat."""
    system = [Turn(role="system", content=prompt.system)] if prompt.system else []
    return {"messages": [*system, *prompt.turns], **_common(model, prompt.options, config, can_think)}


def generate_body(model: str, prompt: Prompt, config: SpecialistConfig, can_think: bool | None) -> dict[str, Any]:
    """For POST /api/generate, where there is no /api/chat: the turns as one text."""
    if len(prompt.turns) == 1:
        text = prompt.turns[0].content
    else:
        text = "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in prompt.turns) + "\n\nAssistant:"
    return {"system": prompt.system, "prompt": text, **_common(model, prompt.options, config, can_think)}


def load_body(model: str, config: SpecialistConfig) -> dict[str, Any]:
    """A question without a word: the model is loaded, with the profile's options, and nothing is generated.

    Both paths take it: messages empty for /api/chat, no prompt for /api/generate.
    """
    return {"model": model, "messages": [], "options": config.backend.options}


def _common(model: str, options: Options, config: SpecialistConfig, can_think: bool | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "truncate": False,  # a prompt that does not fit is an error, not an answer to its second half
        "options": generation_options(config, options),
        **thinking_wish(model, options, can_think),
    }
    if options.format is not None:
        body["format"] = options.format
    return body


# -- answers ----------------------------------------------------------------------------------------------------------


class Message(Struct, gc=False):
    content: str | None = None
    thinking: str | None = None


_NO_MESSAGE = Message()


class Line(Struct, gc=False):
    """One event of a stream. Durations are nanoseconds; figures that are 0 are left out by the server."""

    message: Message | None = None
    response: str | None = None
    thinking: str | None = None
    error: Any = UNSET
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    load_duration: int | None = None


_decode = msgspec.json.Decoder(Line).decode


class OllamaReading:
    """The lines of one answer into text and its end."""

    finished = False  # nothing follows the last line

    def __init__(self, url: str) -> None:
        self.over = False
        self._url = url
        self._splitter = ThinkSplitter()
        self._inline = True  # the start of the content is not past
        self._said = False  # a character of content
        self._thought = False
        self._last: Line | None = None
        self._failure: ProtocolError | None = None

    def take(self, lines: list[bytes]) -> Piece | None:
        content, thinking = "", ""
        for raw in lines:
            if not raw:
                continue
            try:
                line = _decode(raw)
            except UNREADABLE as error:
                self._fail(ModelError(f"{self._url} sent a line that is no event of Ollama ({error}): is it one?"))
                break
            if line.error is not UNSET:
                said = http.brief(http.unwrapped(line.error))
                self._fail(ModelError(f"the model failed in the middle of the answer ({said}): see the server's log"))
                break
            message = line.message
            if message is not None:
                if message.content:
                    content += message.content
                if message.thinking:
                    thinking += message.thinking
            else:
                content += line.response or ""
                thinking += line.thinking or ""
            if line.done:
                self._last = line
                self.over = True
                break
        return self._piece(content, thinking)

    def rest(self) -> Piece | None:
        if not self._inline:
            return None
        thinking, content = self._splitter.rest()
        self._inline = False
        return self._piece(content, thinking)

    def raise_failure(self) -> None:
        """Raises what the server said was wrong; an end that is missing is not asked about."""
        if self._failure is not None:
            raise self._failure

    def finish(self) -> Finish:
        self.raise_failure()
        last = self._last
        if last is None:
            raise truncated(self._url)
        done_reason = "length" if last.done_reason == "length" else "stop"
        if not self._said:
            raise empty(done_reason, thought=self._thought)
        return Finish(
            done_reason=done_reason,
            prompt_tokens=last.prompt_eval_count,
            completion_tokens=last.eval_count,
            tokens_per_second=_rate(last.eval_count, last.eval_duration),
            prompt_tokens_per_second=_rate(last.prompt_eval_count, last.prompt_eval_duration),
            load_ms=_milliseconds(last.load_duration),
            prompt_ms=_milliseconds(last.prompt_eval_duration),
        )

    def _piece(self, content: str, thinking: str) -> Piece | None:
        if self._inline and content:
            inline, content = self._splitter.split(content)
            thinking += inline
            self._inline = not self._splitter.settled
        if content:
            self._said = True
        elif not thinking:
            return None
        if thinking:
            self._thought = True
        return Piece(content, thinking)

    def _fail(self, failure: ProtocolError) -> None:
        self._failure = failure
        self.over = True


def _rate(count: int | None, nanoseconds: int | None) -> float | None:
    return count / (nanoseconds / 1e9) if count and nanoseconds else None


def _milliseconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6
