"""Whether a process has more memory than it may, and what follows. Arithmetic: no clock inside.

More than the limit in a few looks in a row, and it is to be replaced as soon as it is idle. One that has so much soon after
its start does not leak: a successor would have the same, so the limit is too low for it. That is no reason to replace it; twice
that much is.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

LOOKS = 3  # in a row: one long answer may take a moment's memory
YOUNG = 60.0  # seconds: nobody is replaced more often than this
PARDONED_UP_TO = 2  # times what a young process was found with
MIB = 1_048_576


class Record(Struct, frozen=True):
    """What is remembered of one process: the looks in a row that found too much, its age at the first of them, and the bytes
    with which it was pardoned when it was young.
    """

    over: int = 0
    since: float = 0.0
    pardoned: int | None = None


def looked(record: Record, rss: int, limit: int, age: float) -> Record:
    """The record after a look at a process of this age, in seconds, that has `rss` bytes."""
    if rss <= limit:
        return Record()
    if record.pardoned is not None and rss <= PARDONED_UP_TO * record.pardoned:
        return replace(record, over=0)
    since = record.since if record.over else age
    if record.over + 1 >= LOOKS and since < YOUNG and record.pardoned is None:
        return Record(pardoned=rss)
    return replace(record, over=record.over + 1, since=since)


def is_due(record: Record, age: float) -> bool:
    """Whether a process of this age is to be replaced when it is idle."""
    return record.over >= LOOKS and age >= YOUNG


class Finding(Struct, frozen=True):
    """What a look found: what a person should know as long as it is so, what is to be said aloud once, and why the process is
    to be replaced now.
    """

    notice: str | None = None
    loud: str | None = None
    recycle: str | None = None


class Ceiling:
    """One specialist's limit over the lives of its processes. Written by its keeper."""

    def __init__(self) -> None:
        self._record = Record()
        self._limit: int | None = None
        self._was_told = False

    def begin(self) -> None:
        """A new process was started."""
        self._record = Record()

    def look(self, rss: int | None, limit: int | None, age: float, is_idle: bool) -> Finding:
        """The next finding about a process of this age, in seconds; `limit` None is none."""
        if limit != self._limit:
            self._limit, self._record, self._was_told = limit, Record(), False
        if limit is None or rss is None:
            return Finding()
        self._record = looked(self._record, rss, limit, age)
        excess = f"{rss / MIB:.0f} MiB of memory, more than {limit / MIB:.0f} MiB"
        if is_due(self._record, age):
            if not is_idle:
                return Finding(notice=f"{excess}: it is replaced as soon as it is idle")
            self._record = Record()  # should there be no successor, the next try is a few looks away
            return Finding(recycle=f"recycled: {excess}")
        if self._record.pardoned is None:
            return Finding()
        had = f"it had {self._record.pardoned / MIB:.0f} MiB of memory soon after its start, more than {limit / MIB:.0f} MiB"
        until = f"it is left alone up to {PARDONED_UP_TO * self._record.pardoned / MIB:.0f} MiB"
        notice = f"{had}: max_rss_bytes is too low for it, {until}"
        loud, self._was_told = None if self._was_told else notice, True
        return Finding(notice=notice, loud=loud)
