"""Answers that their readers do not read: how long we wait for them, and how much all of them may hold.

A model server is always read at full speed, so what a slow client has not taken waits in its connection's write buffer,
beside the text of the answer itself, which is kept until its end. Whoever takes nothing for `write_timeout` is cut off; and
when what is held for slow readers passes `max_buffered_bytes`, the one that has been stuck longest goes first.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

CHECK_EVERY = 1.0  # seconds; only while somebody is slow


class Reader(Protocol):
    """A connection as seen from here."""

    def unsent(self) -> int:
        """Bytes written to it that the kernel has not taken."""

    def held(self) -> int:
        """Bytes of memory that it costs: what is unsent, and the text of its answers under way."""

    def written(self) -> int:
        """Bytes written to it in all."""

    def cut_off(self, reason: str) -> None:
        """Disconnects it and cancels its requests."""


class Ledger:
    """All slow readers of one process. Written by the connections, on the event loop."""

    def __init__(self, write_timeout: float, max_buffered_bytes: int) -> None:
        self.write_timeout = write_timeout
        self.max_buffered_bytes = max_buffered_bytes
        self._slow: dict[Reader, tuple[float, int]] = {}  # since when no byte was taken, and how many had been by then
        self._estimate = 0  # never below the true sum: corrected when it passes the limit
        self._timer: asyncio.TimerHandle | None = None

    def total(self) -> int:
        """Bytes that are held for slow readers."""
        return sum(reader.held() for reader in self._slow)

    def slow(self, reader: Reader) -> None:
        """This reader's socket is full."""
        loop = asyncio.get_running_loop()
        self._slow[reader] = (loop.time(), reader.written() - reader.unsent())
        self._estimate += reader.held()
        if self._timer is None:
            self._timer = loop.call_later(CHECK_EVERY, self._check)

    def caught_up(self, reader: Reader) -> None:
        """It reads again, or is gone."""
        self._slow.pop(reader, None)
        if not self._slow and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def wrote(self, count: int) -> None:
        """A slow reader was given `count` more bytes to hold."""
        self._estimate += 2 * count  # once unsent, and at most once more in the text of its answer
        if self._estimate > self.max_buffered_bytes:
            self._make_room()

    def _make_room(self) -> None:
        self._estimate = self.total()
        for reader in sorted(self._slow, key=lambda one: (self._slow[one][0], -one.held())):
            if self._estimate <= self.max_buffered_bytes:
                return
            self._estimate -= reader.held()
            del self._slow[reader]
            reader.cut_off("what is held for slow readers is over max_buffered_bytes, and this one was stuck longest")

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for reader, (since, taken) in list(self._slow.items()):
            taken_now = reader.written() - reader.unsent()
            if taken_now > taken:
                self._slow[reader] = (now, taken_now)
            elif now - since >= self.write_timeout:
                reader.cut_off(f"took nothing for {self.write_timeout:g} s")
        self._timer = loop.call_later(CHECK_EVERY, self._check) if self._slow else None
