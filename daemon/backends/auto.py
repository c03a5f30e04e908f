"""Finds out by itself where answers come from, for machines where nobody has configured anything.

It starts on the built-in echo only where no model server was ever seen, and moves to the model server as soon
as one answers, once and for good: an echo in place of a model that is only down for a minute would be a lie.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from daemon.backends import Backend, Prompt, Step
from daemon.backends.builtin import Builtin
from daemon.backends.memory import Memory
from daemon.backends.ollama import Ollama
from daemon.backends.rhythm import USUAL, Rhythm
from protocol.messages import BackendState
from protocol.settings import SpecialistConfig

log = logging.getLogger(__name__)


class Auto:
    """The backend that is the built-in echo until a model server answers. Everything it says is the current
    one's.
    """

    def __init__(self, config: SpecialistConfig, rhythm: Rhythm = USUAL) -> None:
        self._config = config
        self._rhythm = rhythm
        self._memory = Memory(config.state_dir)
        self._ollama = Ollama(config, rhythm)
        self._current: Backend = self._ollama if self._memory.read().seen else Builtin(config)

    @property
    def kind(self) -> str:
        return self._current.kind

    @property
    def model(self) -> str:
        return self._current.model

    @property
    def state(self) -> BackendState:
        return self._current.state

    @property
    def context_length(self) -> int | None:
        return self._current.context_length

    @property
    def note(self) -> str | None:
        return self._current.note

    def generate(self, prompt: Prompt) -> AsyncIterator[Step]:
        return self._current.generate(prompt)

    async def embed(self, texts: list[str], model: str | None) -> tuple[list[list[float]], str]:
        return await self._current.embed(texts, model)

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        if self._current is self._ollama:
            await self._ollama.run(task_status=task_status)
            return
        task_status.started()
        await self._listening()
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._ollama.run)
            await self._usable()
            self._current = self._ollama
            log.info("a model server answers at %s: answers come from %s now", self._config.url, self.model or "it")

    async def _listening(self) -> None:
        """Returns when something listens there, or when another process has found a model server before."""
        while not self._memory.read().seen:
            if await self._listens():
                return
            await anyio.sleep(self._rhythm.probe)

    async def _usable(self) -> None:
        """Returns when the model server has a model that can answer, or when another process has found one
        before.
        """
        while not self._memory.read().seen:
            if await self._listens():
                await self._ollama.look()
                if self._ollama.state.state == "ready":
                    return
            await anyio.sleep(self._rhythm.probe)

    async def _listens(self) -> bool:
        """Whether anything accepts connections there. Costs the other side nothing, and a log line nowhere."""
        try:
            address = urlsplit(self._config.url)
            port = address.port or (443 if address.scheme == "https" else 80)
            with anyio.fail_after(self._rhythm.connect):
                async with await anyio.connect_tcp(address.hostname or "", port):
                    return True
        except (OSError, TimeoutError, ValueError):
            return False
