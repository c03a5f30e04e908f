"""The seam between a specialist and whatever answers for it.

A backend belongs to one specialist's process and may answer many requests at once. Foreign errors become ours here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus
from msgspec import Struct

from protocol.messages import BackendState, Options, Phase, Turn


class Prompt(Struct, frozen=True):
    """What is shown to the model: the fixed system text, then the turns, the last of which is the user's.

    `think` None means that the caller did not say.
    """

    system: str
    turns: list[Turn]
    options: Options


class Piece(Struct, frozen=True):
    """Text that arrived in one read from upstream: what the model thinks, and what it says. Either may be empty."""

    content: str = ""
    thinking: str = ""


class Waiting(Struct, frozen=True):
    """Nothing has arrived yet, and this is why. `position` counts from 1 where it is known."""

    phase: Phase
    position: int | None = None


class Finish(Struct, frozen=True, kw_only=True):
    """The end of an answer. Token counts and durations are the model server's own, None where it does not say."""

    done_reason: str  # stop or length
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens_per_second: float | None = None
    prompt_tokens_per_second: float | None = None
    load_ms: float | None = None
    prompt_ms: float | None = None


Step = Piece | Waiting | Finish


class Backend(Protocol):
    """One kind of model server.

    `state` is what was last seen of it; `model` is what answers now, for people to read.
    `context_length` is the window in tokens where it is known.
    """

    @property
    def kind(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def state(self) -> BackendState: ...
    @property
    def context_length(self) -> int | None: ...
    @property
    def note(self) -> str | None:
        """One sentence for people where something about the answers must be said, such as that there is no model."""

    def generate(self, prompt: Prompt) -> AsyncIterator[Step]:
        """Streams one answer; the last step is a Finish, or one of protocol.errors is raised.

        Closing the iterator ends the generation at the model server. The time limits of the configuration
        (first_byte, silence) are kept here, because only here is it known what a byte from upstream is.
        """

    async def embed(self, texts: list[str], model: str | None) -> tuple[list[list[float]], str]:
        """One vector for each text, and the model that made them."""

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Watches the model server until cancelled: every 10 s, and at once after a failure. Closes what it opened."""
