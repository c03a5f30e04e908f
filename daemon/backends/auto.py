"""Finds out by itself where answers come from, for machines where nobody has configured anything.

It starts on the built-in echo only where no model server was ever seen, and moves to the model server as soon as one
answers, once and for good: an echo in place of a model that is only down for a minute would be a lie.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from daemon.backends import Backend, Prompt, Step
from daemon.backends.builtin import Builtin
from daemon.backends.memory import Memory
from daemon.backends.ollama import Ollama
from daemon.backends.rhythm import USUAL, Rhythm
from protocol.messages import BackendState
from protocol.settings import SpecialistConfig

log = logging.getLogger(__name__)


class Auto:
    """The built-in echo until a model server answers. Everything it says is what the current one says."""

    def __init__(self, config: SpecialistConfig, rhythm: Rhythm = USUAL) -> None:
        self._config = config
        self._rhythm = rhythm
        self._memory = Memory(config.state_dir)
        self._ollama = Ollama(config, rhythm)
        self._current: Backend = self._ollama if self._memory.read().seen else Builtin(config)
        self._tried = anyio.Event()  # the first attempt to find a model server is over

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
        """Is started after the first attempt, so that a model server which is there answers the first question too."""
        if self._current is self._ollama:
            await self._ollama.run(task_status=task_status)
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._find, tasks)
            with anyio.move_on_after(self._rhythm.quiet):
                await self._tried.wait()
            task_status.started()

    async def _find(self, tasks: TaskGroup) -> None:
        """Tries until the model server has a model that can answer, or another process has found one; then moves."""
        asked = False
        while not self._memory.read().seen:
            if await self._listens():
                if not asked:
                    await tasks.start(self._ollama.run)
                    asked = True
                await self._ollama.look()
                if self._ollama.state.state == "ready":
                    break
            self._tried.set()
            await anyio.sleep(self._rhythm.probe)
        if not asked:
            await tasks.start(self._ollama.run)
        self._current = self._ollama
        self._tried.set()
        log.info("a model server answers at %s: answers come from %s now", self._config.url, self.model or "it")

    async def _listens(self) -> bool:
        """Whether anything accepts connections there. Costs the other side nothing, and no line in its log.

        A bare socket, since every specialist of a team without a model server asks this again and again.
        """
        try:
            address = urlsplit(self._config.url)
            host, port = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as knocking:
                knocking.setblocking(False)
                code = knocking.connect_ex((host, port))
                # On this machine it is decided by now.
                if code == errno.EINPROGRESS and not (code := _error_of(knocking)):
                    with anyio.fail_after(self._rhythm.connect):
                        await anyio.wait_writable(knocking)
                    code = _error_of(knocking)
                return code == 0
        except (OSError, TimeoutError, ValueError):
            return False


def _error_of(one: socket.socket) -> int:
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
