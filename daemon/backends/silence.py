"""Notices that nothing has come for too long, at the cost of one timestamp per read.

A scope or a timer per read would cost more than the read itself. So one timer sleeps through a whole limit,
then looks at the timestamp and either lies down for what is left of it, or says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Silence:
    """Calls `on_silent` once when `since` is older than the limit.

    `since` is the loop's time when listening began, written by whoever listens, and None while nobody does:
    time that our own consumer takes is not the model server's silence.
    """

    def __init__(self, limit: float, on_silent: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_silent = on_silent
        self.limit = limit
        self.since: float | None = self._loop.time()
        self.broken = False  # the limit passed
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(limit, self._look)

    def allow(self, limit: float) -> None:
        """From now on another limit holds."""
        if self._timer is None:
            return
        self.limit = limit
        self._timer.cancel()
        self._timer = self._loop.call_later(limit, self._look)

    def stop(self) -> None:
        """Nobody listens any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        left = self.limit if self.since is None else self.since + self.limit - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
            return
        self._timer = None
        self.broken = True
        self._on_silent()
