"""A backend that says what a test tells it to: a small real one, behind the same seam as the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from daemon.backends import Finish, Piece, Prompt, Step, Waiting
from protocol.messages import BackendState

# A text is a piece, an exception is raised, an event is waited for.
Line = str | Piece | Waiting | Finish | BaseException | asyncio.Event
Script = Sequence[Line] | Callable[[Prompt], Sequence[Line]]

WHOLE = Finish(done_reason="stop", prompt_tokens=7, completion_tokens=2, tokens_per_second=50.0)


class ScriptedBackend:
    """Answers every question with its script, or with what the script makes of the question.

    `prompts` are the questions that came; `under_way` counts answers that are being given, `cut_short` those that were
    closed before their end.
    """

    kind = "scripted"
    model = "scripted:1b"
    note: str | None = None

    def __init__(self, *script: Line, answer: Callable[[Prompt], Sequence[Line]] | None = None) -> None:
        self.script: Script = answer or script
        self.state = BackendState(kind=self.kind, url=None, state="ready", error=None)
        self.context_length: int | None = None
        self.prompts: list[Prompt] = []
        self.under_way = 0
        self.cut_short = 0

    @property
    def questions(self) -> list[str]:
        """The last turn of each prompt."""
        return [prompt.turns[-1].content for prompt in self.prompts]

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Step, None]:
        self.prompts.append(prompt)
        self.under_way += 1
        ended = False
        try:
            for line in self.script(prompt) if callable(self.script) else self.script:
                await anyio.lowlevel.checkpoint()
                match line:
                    case asyncio.Event():
                        await line.wait()
                    case BaseException():
                        ended = True
                        raise line
                    case Finish():
                        ended = True
                        yield line
                        return
                    case str():
                        yield Piece(content=line)
                    case _:
                        yield line
            ended = True
            yield WHOLE
        finally:
            self.under_way -= 1
            self.cut_short += not ended

    async def embed(self, texts: list[str], model: str | None) -> tuple[list[list[float]], str]:
        return [[float(len(text)), 1.0] for text in texts], model or self.model

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await anyio.sleep_forever()


class EchoBackend(ScriptedBackend):
    """Says the question again, word by word."""

    def __init__(self) -> None:
        super().__init__(answer=lambda prompt: [word + " " for word in prompt.turns[-1].content.split()])
