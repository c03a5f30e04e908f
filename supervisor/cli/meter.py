"""How much of the machine processes use: time on a processor between two looks, and memory. Asks the kernel, not them."""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil
from msgspec import Struct

LEAST_SPAN = 0.5  # seconds between two looks: the kernel counts in hundredths of a second


class Usage(Struct, frozen=True):
    """`cpu` in percent of one processor, None after the first look; `rss` in bytes, pages shared with others included."""

    cpu: float | None
    rss: int


class Meter:
    """Remembers each process as it was at the last look."""

    def __init__(self) -> None:
        self.usage: dict[int, Usage] = {}
        self._processes: dict[int, psutil.Process] = {}
        self._seconds: dict[int, float] = {}
        self._at = float("-inf")

    def look(self, pids: Iterable[int]) -> bool:
        """Measures those that live and may be looked at; returns whether it did, or whether it is too early for that."""
        now = time.monotonic()
        span = now - self._at
        if span < LEAST_SPAN:
            return False
        processes, seconds = self._processes, self._seconds
        self.usage, self._processes, self._seconds, self._at = {}, {}, {}, now
        for pid in pids:
            try:
                process = processes.get(pid) or psutil.Process(pid)
                times, rss = process.cpu_times(), process.memory_info().rss
            except psutil.Error:
                continue  # it ended in this moment, or is somebody's who does not show it
            self._processes[pid] = process
            self._seconds[pid] = total = times.user + times.system
            self.usage[pid] = Usage(max(0.0, total - seconds[pid]) / span * 100 if pid in seconds else None, rss)
        return True

    def together(self) -> int | None:
        """Bytes of memory that all of them use: a page that several share counts once. None where the kernel does not say."""
        try:
            return sum(process.memory_full_info().pss for process in self._processes.values())
        except (psutil.Error, AttributeError):
            return None
