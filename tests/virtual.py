"""An event loop whose clock jumps: as soon as every task waits, it is the time of the next timer. Hours pass in milliseconds.

Only for code that does no I/O: a socket's answer would always be too late.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
BEGINNING = 1000.0  # seconds; a steady clock does not begin at 0


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` is the virtual clock; whoever reads another one has to be given this."""

    def __init__(self) -> None:
        super().__init__()
        self._now = BEGINNING

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        timers = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0].cancelled():
            heapq.heappop(timers)._scheduled = False
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
        if timers and not self._ready:  # type: ignore[attr-defined]
            self._now = max(self._now, timers[0].when())
        super()._run_once()  # type: ignore[misc]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs something to its end."""
        return self.run_until_complete(work)

    def pass_time(self, seconds: float) -> None:
        """Lets everything happen that happens within so many seconds."""
        self.run(asyncio.sleep(seconds))
