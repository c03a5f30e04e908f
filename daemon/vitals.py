"""What a process measures of itself, cheaply: it is asked every two seconds, in 18 processes that have nothing else to do."""

from __future__ import annotations

import asyncio
import os

LAG_PERIOD = 5.0  # seconds between two looks at how late the event loop is


class Lag:
    """How late the event loop runs: a blocked loop shows in health before it shows as a hang.

    A bare timer: as a task with a sleep in it, it was a third of an idle specialist's processor time.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to look. Whoever starts it stops it."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + LAG_PERIOD
        self._timer = loop.call_at(self._due, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self.seconds = max(0.0, asyncio.get_running_loop().time() - self._due)
        self.start()


def resident_bytes() -> int:
    """The memory that this process has in RAM."""
    try:
        # proc(5), statm: the second figure is the resident set, in pages.
        with open("/proc/self/statm", "rb", buffering=0) as statm:
            return int(statm.read(64).split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:  # not Linux
        import psutil

        resident: int = psutil.Process().memory_info().rss
        return resident
