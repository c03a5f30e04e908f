"""What processes wrote down, as records. Pure but for `recent`; `tail.py` reads the files.

A process writes its records to `<name>.log`, one a line, with local time. What it writes to standard output and standard
error without being asked (a traceback at the very end, the stacks of a hang) is in `<name>.out` and has no time of its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from supervisor.tail import Tail

OUTPUT = "OUTPUT"  # the level of what came without one

_RECORD = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}) ([A-Z]+) [^\s:]+: (.*)", re.DOTALL)


class Record(Struct, frozen=True):
    """One thing that was logged. `at` is a Unix time; the message may have several lines."""

    at: float
    level: str
    name: str
    message: str


def parse(line: str, name: str, before: float) -> Record:
    """A line of `<name>.log`. One of no known form, such as one that a full disk cut, is from when `before` was."""
    if found := _RECORD.fullmatch(line):
        stamp, level, message = found.groups()
        try:
            return Record(datetime.fromisoformat(stamp).timestamp(), level, name, message.replace("\\n", "\n"))
        except ValueError:
            pass  # 99 o'clock
    return Record(before, OUTPUT, name, line)


class Told(Struct, frozen=True):
    """A record as programs are given it; the time is ISO 8601 with the offset of this machine's zone."""

    time: str
    level: str
    name: str
    message: str


def told(record: Record) -> Told:
    when = datetime.fromtimestamp(record.at).astimezone().isoformat(timespec="milliseconds")
    return Told(when, record.level, record.name, record.message)


def as_json(record: Record) -> str:
    """One object on one line."""
    return msgspec.json.encode(told(record)).decode()


def recent(name: str, tail: Tail, limit: int | None, earliest: float, *, keep_open: bool) -> list[Record]:
    """The last records of one file and of those rotated from it, oldest first; not more than are wanted are parsed."""
    found: list[Record] = []
    for whole, changed_at in tail.existing():
        if changed_at < earliest:
            break
        lines = whole if found or keep_open else [*whole, *tail.rest()]
        wanted = lines if limit is None else lines[max(0, len(lines) - (limit - len(found))) :]
        found[:0] = parsed(name, tail.path, wanted, changed_at)
        if (limit is not None and len(found) >= limit) or (found and found[0].at < earliest):
            break
    return [record for record in found if record.at >= earliest]


def parsed(name: str, path: Path, lines: Iterable[bytes], changed_at: float) -> list[Record]:
    """Lines as records. Raw output has no time but that of its file; empty lines of it are left out."""
    texts = [text for line in lines if (text := line.decode("utf-8", "replace").rstrip("\r")).strip()]
    if path.suffix == ".out":
        return [Record(changed_at, OUTPUT, name, text) for text in texts]
    found: list[Record] = []
    for text in texts:
        found.append(parse(text, name, found[-1].at if found else changed_at))
    return found


def stamped(at: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(at))}.{int(at % 1 * 1000):03d}"


def merged(records: Sequence[Sequence[Record]]) -> list[Record]:
    """All of them by time; within one name the order stays what it was, also where a clock went back."""
    import heapq

    return list(heapq.merge(*records, key=lambda record: record.at))
