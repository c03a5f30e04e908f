"""What becomes of the team, as one stream for everybody who follows it: each change of a state, with its cause.

The supervisor counts its events without a hole for the life of the state folder, and so do the ids here: `<epoch>-<seq>`, where
the epoch is a word that is written down once beside the supervisor's log of events. So a reader's place is good across a
restart of the gateway, which begins with what is in that log, and of the supervisor, which goes on counting.

A new reader is given the team as it is, in a `snapshot` whose id is that of the last change in it, and then every
`transition`. Whose place is too old, or in another life of the folder, is given a `stream_reset` with the same in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from protocol.control import AnyAnswer, Gap, Snapshot, Transition
from supervisor.fleet import eventlog
from supervisor.gateway.frames import frame, json_line
from supervisor.gateway.record import Head
from supervisor.gateway.stream import RING_FRAMES, Cursor, Reader, Stream, new_epoch
from supervisor.gateway.vocabulary import Event, Vocabulary

logger = logging.getLogger("chorus.gateway")

KIND = "events"
EPOCH_FILE = "events.epoch"  # in the state folder


class SnapshotEvent(Struct, frozen=True, tag_field="type", tag="snapshot"):
    """The team at this moment. `seq` is the number of the last change that it contains; None where none is known."""

    seq: int | None
    picture: Any


class TeamReset(Struct, frozen=True, tag_field="type", tag="stream_reset"):
    """Changes are missing, `lost` of them where that is known. What follows goes on from this snapshot."""

    reason: str
    lost: int | None
    snapshot: SnapshotEvent


EVENTS = {"snapshot": (SnapshotEvent,), "transition": (Transition,), "stream_reset": (TeamReset,)}


class Happenings:
    """The stream, and the one who writes to it. `picture` gives the team as it is now, fit for JSON."""

    stream: Stream

    def __init__(self, state_dir: Path, picture: Callable[[], Any]) -> None:
        self._log = state_dir / eventlog.FILE
        self._epoch_file = state_dir / EPOCH_FILE
        self._picture = picture
        self.vocabulary = Vocabulary(
            name=KIND, fold=lambda _: None, failed=lambda _error, _: [], behind=lambda lost, _: self._behind(lost)
        )

    def begin(self) -> None:
        """Begins with what is in the log of events."""
        self._open(eventlog.latest(self._log, RING_FRAMES), self._epoch())

    def take(self, told: AnyAnswer) -> None:
        """Takes what the supervisor's watch says."""
        match told:
            case Transition():
                self._append(told)
            case Snapshot():
                self._catch_up(told.seq)
            case Gap():
                pass  # a snapshot follows

    def end(self) -> None:
        """Lets every reader go: its successor has the rest."""
        self.stream.end()

    def knows(self, cursor: Cursor | None) -> bool:
        """Whether a reader can go on from there, and needs no picture."""
        return cursor is not None and self.stream.place(cursor) is not None

    def follow(self, cursor: Cursor | None, *, is_lost: bool = False) -> Reader:
        """A new reader from behind a cursor, or from now on. `is_lost` is one that had a place which is none of ours."""
        stream = self.stream
        if cursor is not None and (place := stream.place(cursor)) is not None:
            return stream.reader(place)
        opening: Event = "snapshot", json_line(self._snapshot())
        if cursor is not None or is_lost:
            opening = self._reset("this place is not known here", None)
        return stream.reader(stream.visible, opening=frame(*opening, stream.cursor))

    # -- writing ------------------------------------------------------------------------------------------------------

    def _open(self, past: list[Transition], epoch: str) -> None:
        first = past[0].seq if past else 0
        self.stream = Stream(Head(id=KIND, kind=KIND, created=0.0), epoch=epoch, first=first)
        for one in past:
            self._append(one)

    def _append(self, one: Transition) -> None:
        stream = self.stream
        if stream.ended is not None or one.seq < stream.count:
            return  # going down; or known already
        if one.seq > stream.count:
            stream.skip_to(one.seq)
        stream.append("transition", json_line(one))

    def _catch_up(self, seq: int) -> None:
        """Takes up what happened before the watch began. Every event was on disk before anybody was told of it."""
        if self.stream.ended is not None:
            return
        if seq + 1 < self.stream.count:
            logger.warning("the state folder was emptied: events are counted anew")
            self._epoch_file.unlink(missing_ok=True)
            before = self.stream
            self._open(eventlog.latest(self._log, RING_FRAMES), self._epoch())
            before.end()
        if seq >= self.stream.count:
            for one in eventlog.latest(self._log, RING_FRAMES):
                if one.seq <= seq:
                    self._append(one)
        if seq >= self.stream.count:
            self.stream.skip_to(seq + 1)

    def _epoch(self) -> str:
        """The word for this life of the state folder: the one that is written there, or a new one."""
        fresh = new_epoch()
        try:
            self._epoch_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._epoch_file.open("x") as file:
                file.write(fresh)
        except FileExistsError:
            return self._epoch_file.read_text().strip() or fresh
        except OSError as error:
            logger.error("cannot write %s: %s; readers begin anew after a restart", self._epoch_file, error.strerror)
        return fresh

    # -- what readers are told ----------------------------------------------------------------------------------------

    def _snapshot(self) -> SnapshotEvent:
        count = self.stream.visible
        return SnapshotEvent(count - 1 if count else None, self._picture())

    def _behind(self, lost: int) -> Event:
        return self._reset("this reader fell behind", lost)

    def _reset(self, reason: str, lost: int | None) -> Event:
        return "stream_reset", json_line(TeamReset(reason, lost, self._snapshot()))
