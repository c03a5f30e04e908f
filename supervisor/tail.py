"""A log file that others write, rotate, cap and cut: read from a point on, without loss and without duplicates.

Three things happen to such a file. It grows. It is rotated: the name gets a new inode, and what was not read yet is in the
file that was open, or in .1, .2, .3. It is rewritten in place (the supervisor caps raw output, logrotate's copytruncate):
the inode stays, and what was read last is found again by its bytes. There is no clock here: the caller says when to look.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

ROTATED = 3  # daemon.logs.KEPT_FILES
ANCHOR = 512  # bytes read last, by which a file that was rewritten is recognised
LATE_LOOKS = 5  # looks at a file after its rotation: whoever had it open may still write a line


class Reading:
    """One open file and how far it was read. Closed by whoever opened it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("rb")
        status = os.fstat(self._file.fileno())
        self.inode = (status.st_dev, status.st_ino)
        self._offset = 0
        self._anchor = b""
        self._partial = b""
        self._puzzled = False
        self.late = 0

    @property
    def changed_at(self) -> float:
        return os.fstat(self._file.fileno()).st_mtime

    def lines(self) -> list[bytes]:
        """Whole lines that are new since the last call."""
        descriptor = self._file.fileno()
        size = os.fstat(descriptor).st_size
        if size != self._offset and not self._goes_on(descriptor, size) and not self._find_again(descriptor):
            if not self._puzzled:
                self._puzzled = True  # perhaps in the middle of being rewritten: the next look will tell
                return []
            self._offset, self._anchor, self._partial = 0, b"", b""
        self._puzzled = False
        data = b""
        while read := os.pread(descriptor, 1 << 20, self._offset + len(data)):
            data += read
        if not data:
            return []
        self._offset += len(data)
        self._anchor = (self._anchor + data)[-ANCHOR:]
        *whole, self._partial = (self._partial + data).split(b"\n")
        return whole

    def rest(self) -> list[bytes]:
        """The last line where it has no end yet; only once, when no more of it is expected."""
        partial, self._partial = self._partial, b""
        return [partial] if partial else []

    def close(self) -> None:
        self._file.close()

    def _goes_on(self, descriptor: int, size: int) -> bool:
        """Whether what was read is still before where we stand."""
        start = self._offset - len(self._anchor)
        return size > self._offset and os.pread(descriptor, len(self._anchor), start) == self._anchor

    def _find_again(self, descriptor: int) -> bool:
        """Stands behind what was read last, wherever it is now; False where it is gone."""
        with open(descriptor, "rb", closefd=False) as file:
            file.seek(0)
            found = file.read().rfind(self._anchor) if self._anchor else -1
        if found >= 0:
            self._offset = found + len(self._anchor)
        return found >= 0


class Tail:
    """A log by its name, through its rotations. `name.log.1` is the newest of those that were rotated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: Reading | None = None
        self._late: list[Reading] = []
        self._old: set[tuple[int, int]] = set()  # rotated before we came

    def existing(self) -> Iterator[tuple[list[bytes], float]]:
        """What is there now: the lines of each file and when it changed last, newest file first.

        Newest first, so that a rotation meanwhile shows one file twice, which is seen by its inode, and hides none.
        The first file is kept open: `news` goes on from its end. Stop early, and the older files are not read.
        """
        readings = [one for number in range(ROTATED + 1) if (one := self._reading(number)) is not None]
        if readings and readings[0].path == self.path:
            self._open = readings.pop(0)
        self._old = {one.inode for one in readings}
        try:
            if self._open is not None:
                yield self._open.lines(), self._open.changed_at
            seen = {self._open.inode} if self._open else set()
            for reading in readings:
                if reading.inode not in seen:
                    seen.add(reading.inode)
                    yield reading.lines() + reading.rest(), reading.changed_at
        finally:
            for reading in readings:
                reading.close()

    def rest(self) -> list[bytes]:
        """The last line of the file where it has no end: for those who do not follow."""
        return self._open.rest() if self._open else []

    def news(self) -> Iterator[tuple[list[bytes], float]]:
        """Lines that came since the last look, with the time of the file they are in, oldest first."""
        for late in self._late:
            late.late += 1
            yield late.lines(), late.changed_at
        for late in [one for one in self._late if one.late >= LATE_LOOKS]:
            self._late.remove(late)
            yield late.rest(), late.changed_at
            late.close()
        before = self._open
        for reading in self._successors(before):
            if self._open is not None and self._open is not reading:
                yield self._open.lines(), self._open.changed_at
                self._late.append(self._open)
            self._open = reading
        if self._open is not None:
            yield self._open.lines(), self._open.changed_at

    def close(self) -> None:
        """Closes every file; nothing may be read afterwards."""
        for reading in [*self._late, *([self._open] if self._open else [])]:
            reading.close()

    def _successors(self, before: Reading | None) -> list[Reading]:
        """The files that came after the open one, oldest first; empty while it is still the newest."""
        newer: list[Reading] = []
        for number in range(ROTATED + 1):
            if before is None and number > 0:
                break  # nothing was there: only what has the name now is new
            reading = self._reading(number)
            if reading is None:
                continue
            if before is not None and (reading.inode == before.inode or (number and reading.inode in self._old)):
                reading.close()
                break
            if all(reading.inode != one.inode for one in [*newer, *self._late]):
                newer.insert(0, reading)
            else:
                reading.close()
        return newer

    def _reading(self, number: int) -> Reading | None:
        path = self.path.with_name(f"{self.path.name}.{number}") if number else self.path
        try:
            return Reading(path)
        except OSError:
            return None
