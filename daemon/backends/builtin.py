"""The built-in echo: answers without any model, so that the whole system can be tried, and tested, on a bare machine.

It never pretends: its first sentence says what it is, and how to get a real model.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from daemon.backends import Finish, Piece, Prompt, Step
from protocol.errors import NotFound
from protocol.messages import BackendState
from protocol.settings import SpecialistConfig

NAME = "builtin"
HOW = "install and start Ollama (https://ollama.com), then run `ollama pull llama3.2`"
NOTE = f"answers come from the built-in echo, not from a language model: {HOW}"
WHAT = f"I am the built-in echo, not a language model: I only repeat what reached me. For real answers, {HOW}."

LONGEST_ECHO = 300  # characters of each part that is repeated


class Builtin:
    """The backend that needs nothing. `pace` is in tokens a second; a token is a word with the space before it."""

    kind = NAME
    model = NAME
    state = BackendState(kind=NAME, url=None, state="ready", error=None)
    context_length: int | None = None
    note = NOTE

    def __init__(self, config: SpecialistConfig) -> None:
        self._pace = config.backend.pace

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Step, None]:
        """The echo, the first token at once, then at the pace; max_tokens cuts it."""
        tokens = words(echo(prompt))
        limit = prompt.options.max_tokens or len(tokens)
        began = anyio.current_time()
        for index, token in enumerate(tokens[:limit]):
            # A moment per token, not a pause after each: pauses would add up what the loop is late.
            await anyio.sleep(max(0.0, began + index / self._pace - anyio.current_time()))
            yield Piece(content=token)
        written = min(limit, len(tokens))
        elapsed = anyio.current_time() - began
        yield Finish(
            done_reason="length" if limit < len(tokens) else "stop",
            prompt_tokens=len(words(prompt.system)) + sum(len(words(turn.content)) for turn in prompt.turns),
            completion_tokens=written,
            tokens_per_second=written / elapsed if elapsed > 0 else None,
        )

    async def embed(self, texts: list[str], model: str | None) -> tuple[list[list[float]], str]:
        raise NotFound(f"the builtin backend has no embeddings: {HOW}")

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """There is nothing to watch."""
        task_status.started()
        await anyio.sleep_forever()


def echo(prompt: Prompt) -> str:
    """What the echo says to this prompt: what it is, what else reached it, and the question."""
    *earlier, last = prompt.turns
    parts = [WHAT]
    if earlier:
        parts.append(f"Earlier turns that reached me: {len(earlier)}.")
    context, question = divided(last.content)
    if context:
        parts.append("Context that reached me:")
        parts += [shortened(part) for part in context]
    parts.append("You asked: " + shortened(question))
    return "\n\n".join(parts)


def divided(content: str) -> tuple[list[str], str]:
    """The parts that prompt.user_turn puts before a question, and the question."""
    context: list[str] = []
    rest = content
    while True:
        part, gap, after = rest.partition("\n\n")
        if not gap or not (part.startswith("Context: ") or "\n> " in part or part.endswith("work on from it.")):
            return context, rest
        context.append(part)
        rest = after


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_ECHO else text[:LONGEST_ECHO].rstrip() + " […]"


def words(text: str) -> list[str]:
    """The text cut into tokens; joined they are the text again."""
    return re.findall(r"\s*\S+|\s+$", text)
