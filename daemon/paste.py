"""Lines of plain text that come without a pause are one message, so that a paste is one question."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PASTE_QUIET = 0.05  # a pause this long ends a message of plain text
PASTE_LIMIT = 1.0  # and so does this long since its first line


class Paste:
    """The lines of one message, until `end` is called: after a pause, or when a line more would be over `limit` bytes.

    `began` is the loop's time of the first line. Written by the conversation.
    """

    def __init__(self, limit: int, end: Callable[[], None]) -> None:
        self.began = 0.0
        self._limit = limit
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._lines: list[str] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, line: bytes) -> None:
        """Takes a line of the message, or the first one of the next."""
        if self._lines and self._size + len(line) > self._limit:
            self._end()
        if not self._lines:
            self.began = self._loop.time()
        self._lines.append(line.decode(errors="replace"))
        self._size += len(line) + 1
        self.wait()

    def wait(self) -> None:
        """Something came: the pause begins anew."""
        self._stop()
        ends_at = min(self._loop.time() + PASTE_QUIET, self.began + PASTE_LIMIT)
        self._timer = self._loop.call_at(ends_at, self._end)

    def take(self) -> str:
        """The message, "" where there is none; what comes next is another."""
        text = "\n".join(self._lines).strip()
        self.drop()
        return text

    def drop(self) -> None:
        """Forgets what came, and waits for nothing."""
        self._stop()
        self._lines = []
        self._size = 0

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
