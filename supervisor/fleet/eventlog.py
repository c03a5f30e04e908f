"""What happened to the team, on disk: one JSON object a line, written before anybody is told, so that a kill loses none.

`events.ndjson` is the newest file, `.1` to `.3` are older. Nothing is synced: that would be for a machine that dies. A record
that could not be written leaves a zero byte in its place: a full disk takes that too, since the file becomes longer and not
bigger. So its number is not given away again, and readers see the hole.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from protocol.codec import encode
from protocol.control import Transition

logger = logging.getLogger("chorus.supervisor")

FILE = "events.ndjson"  # in the state folder
MAX_BYTES = 1_048_576
ROTATED = 3  # older files that are kept

decode_record = msgspec.json.Decoder(Transition).decode


class EventLog:
    """The writer, of which there is one for each state folder. Its file is opened when it is first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._seq: int | None = None
        self._is_cut = False  # the last line on disk has no end
        self._lost = 0

    @property
    def seq(self) -> int:
        """The number of the last event, whoever wrote it."""
        if self._seq is None:
            # Both: after a rotation the newest file may have no record yet.
            self._seq = last_number([line for number in (1, 0) for line in _lines(_older(self.path, number))])
        return self._seq

    def append(self, event: Transition) -> None:
        """Writes one event, whose number is `seq` + 1. A disk that fails is logged, and the team goes on."""
        self._seq = event.seq
        line = encode(event)
        try:
            descriptor = self._opened(len(line))
            left = len(line)
            if self._is_cut and os.write(descriptor, b"\n"):
                self._is_cut = False
            left -= os.write(descriptor, line)
        except OSError as error:
            self._missed(error.strerror)
            self._mark_place()
        else:
            if left:
                self._missed("there was no room for a whole record")
                self._is_cut = True  # and that is the mark
            elif self._lost:
                logger.error("events are written to %s again; %d are missing", self.path, self._lost)
                self._lost = 0

    def close(self) -> None:
        """Gives the file back; the next event opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _opened(self, more: int) -> int:
        """The file's descriptor, with room for `more` bytes: a full file is rotated, a deleted one made anew."""
        if self._descriptor is not None:
            now = os.fstat(self._descriptor)
            if now.st_nlink and now.st_size + more <= MAX_BYTES:
                return self._descriptor
            self.close()
            if now.st_nlink:
                self._rotate()
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        size = os.fstat(self._descriptor).st_size
        self._is_cut = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"
        return self._descriptor

    def _rotate(self) -> None:
        for number in range(ROTATED, 0, -1):
            try:
                os.replace(_older(self.path, number - 1), _older(self.path, number))
            except FileNotFoundError:
                pass  # not so many yet

    def _missed(self, why: str | None) -> None:
        if not self._lost:
            logger.error("cannot write events to %s: %s", self.path, why)
        self._lost += 1

    def _mark_place(self) -> None:
        """Leaves a zero byte for an event of which nothing was written, where even that is possible."""
        if self._descriptor is None:
            return
        try:
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size + 1)
            self._is_cut = True
        except OSError:
            self.close()  # not even its length can be changed: opened anew, it may be there again


def last_number(lines: list[bytes]) -> int:
    """The number of the last event in a log, those behind the last record included that could not be written whole."""
    missing = 0
    for line in reversed(lines):
        if (record := read_record(line)) is not None:
            return record.seq + missing + len(line) - len(line.rstrip(b"\0"))
        missing += line.count(0) + bool(line.strip(b"\0"))
    return missing


def latest(path: Path, most: int) -> list[Transition]:
    """The newest events of a log, oldest of them first, without a hole between them. Whoever writes may go on meanwhile."""
    found: list[Transition] = []
    # Newest first: a rotation meanwhile shows a file twice, and hides none.
    for number in range(ROTATED + 1):
        for line in reversed(_lines(_older(path, number))):
            record = read_record(line)
            if record is None or (found and record.seq >= found[-1].seq and record.at >= found[-1].at):
                continue
            # A higher number of an earlier time: the state folder was emptied between, and counting began anew.
            if len(found) == most or (found and record.seq != found[-1].seq - 1):
                return found[::-1]
            found.append(record)
    return found[::-1]


def read_record(line: bytes) -> Transition | None:
    """A line as the event that it records; None for a torn one, and for the places of events that could not be written."""
    text = line.strip(b"\0")
    try:
        return decode_record(text) if text else None
    except msgspec.MsgspecError:
        return None


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")
    except OSError:
        return []


def _older(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path
