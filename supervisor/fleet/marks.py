"""What the supervisor adds to a specialist's own log: start, exit, the reason of a kill. Nothing else of the log is ours."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from pathlib import Path

import anyio

logger = logging.getLogger("chorus.supervisor")

RAW_OUTPUT_LIMIT = 1_048_576  # bytes of a process's own stdout and stderr that are kept
CAP_EVERY = 10.0  # seconds
HOUSE = ("supervisor", "forkserver")  # whose raw output is capped too: a complaint may be repeated for weeks


class Marks:
    """Appends lines to `<logs>/<name>.log`, in the form of its other lines."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs

    def write(self, name: str, text: str) -> None:
        """One line. A disk that is full must not stop a restart."""
        now = time.time()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(now))}.{int(now % 1 * 1000):03d}"
        line = text.replace("\n", "\\n")
        try:
            with (self._logs / f"{name}.log").open("a", encoding="utf-8") as log:
                log.write(f"{stamp} INFO {name}: [supervisor] {line}\n")
        except OSError as error:
            logger.error("cannot write to the log of %s: %s", name, error)

    async def cap(self, names: Collection[str]) -> None:
        """Looks after the size of raw output until cancelled. A process may write any amount and never end.

        `names` are the specialists, who may change meanwhile.
        """
        while True:
            for name in (*HOUSE, *names):
                try:
                    _cap(self._logs / f"{name}.out")
                except OSError as error:
                    logger.error("cannot shorten the raw output of %s: %s", name, error)
            await anyio.sleep(CAP_EVERY)


def _cap(raw: Path) -> None:
    """Keeps the newest part of raw output that grew over its limit. Its writers append, so they go on behind it."""
    if raw.exists() and (size := raw.stat().st_size) > RAW_OUTPUT_LIMIT:
        with raw.open("r+b") as output:
            output.seek(size - RAW_OUTPUT_LIMIT // 2)  # no more than this is read, whatever the size
            kept = output.read(RAW_OUTPUT_LIMIT // 2)
            output.seek(0)
            output.truncate()
            output.write(kept)
