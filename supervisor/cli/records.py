"""A line of a log file as a record, and records as lines for people or programs. Pure: `follow.py` reads the files.

A process writes its records to `<name>.log`, one a line, with local time. What it writes to standard output and standard
error without being asked (a traceback at the very end, the stacks of a hang) is in `<name>.out` and has no time of its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import datetime

import click
import msgspec
from msgspec import Struct

from supervisor.cli import look
from supervisor.cli.moment import span

OUTPUT = "OUTPUT"  # the level of what came without one
LEVEL_COLOURS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}

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


def as_json(record: Record) -> str:
    """One object; its time is ISO 8601 with the offset of this machine's zone."""
    when = datetime.fromtimestamp(record.at).astimezone().isoformat(timespec="milliseconds")
    fields = {"time": when, "level": record.level, "name": record.name, "message": record.message}
    return msgspec.json.encode(fields).decode()


def as_text(record: Record, room: int, colour: str | int | None = None, *, painted: bool) -> str:
    """`name | time LEVEL message`; every further line of the message has the name too. `room` is the widest name's."""
    message = look.harmless(record.message) if painted else record.message
    prefix = f"{record.name:<{room}} |"
    stamp, level = stamped(record.at), record.level
    if painted:
        prefix = click.style(prefix, fg=colour)
        stamp = click.style(stamp, dim=True)
        level = click.style(level, fg=LEVEL_COLOURS.get(level), dim=level not in LEVEL_COLOURS or None)
    first, *rest = message.rstrip("\n").split("\n")
    head = f"{prefix} {stamp}" if record.level == OUTPUT else f"{prefix} {stamp} {level}"
    return "\n".join([f"{head} {first}", *(f"{prefix}   {line}" for line in rest)])


def stamped(at: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(at))}.{int(at % 1 * 1000):03d}"


def since(text: str, now: datetime) -> float:
    """The Unix time that `5m`, `1h30m`, `2026-11-20` or `2026-11-20T10:00` means. Raises ValueError."""
    if (ago := span(text)) is not None:
        return (now - ago).timestamp()
    return datetime.fromisoformat(text.strip()).timestamp()


def merged(records: Sequence[Sequence[Record]]) -> list[Record]:
    """All of them by time; within one name the order stays what it was, also where a clock went back."""
    import heapq

    return list(heapq.merge(*records, key=lambda record: record.at))
