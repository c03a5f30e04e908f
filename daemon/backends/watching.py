"""Looks at something now and then, at once when asked to, and never too often."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import anyio

from daemon.backends.rhythm import Rhythm


class Watch:
    """When to look. `looked_at` is the loop's time when the last look that ended had begun."""

    def __init__(self, look: Callable[[], Awaitable[None]], rhythm: Rhythm) -> None:
        self._look = look
        self._rhythm = rhythm
        self._wanted = anyio.Event()
        self._ended = anyio.Event()
        self._looking = False
        self.looked_at: float | None = None

    async def run(self) -> None:
        """Looks until cancelled: every `rhythm.look` seconds, and when asked, but not closer than `look_again`."""
        now = asyncio.get_running_loop().time
        while True:
            self._wanted = anyio.Event()
            began = now()
            self._looking = True
            await self._look()
            self._looking = False
            self.looked_at = began
            self._ended.set()
            self._ended = anyio.Event()
            with anyio.move_on_after(self._rhythm.look):
                await self._wanted.wait()
                await anyio.sleep(max(0.0, began + self._rhythm.look_again - now()))

    def ask(self) -> None:
        """A look soon, please."""
        self._wanted.set()

    async def fresh(self) -> None:
        """Returns when somebody has looked a moment ago, looking first where nobody has."""
        now = asyncio.get_running_loop().time()
        if self.looked_at is not None and now - self.looked_at < self._rhythm.look_again:
            return
        if not self._looking:
            self.ask()
        await self._ended.wait()
