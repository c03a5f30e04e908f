"""How often a figure was at most so much."""

from __future__ import annotations

from bisect import bisect_left


class Histogram:
    """Counts for each bound, the last one without; `sum` is that of all figures."""

    def __init__(self, *bounds: float) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
