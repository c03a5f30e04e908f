"""One stream of events that any number of readers follow at their own speed.

Events are encoded once, into a bounded ring. A reader is a place in it and never a queue, so replay and live are the same code,
and nobody slow holds whoever writes. An event's id is `<epoch>-<seq>`: `seq` counts without a gap for the life of the stream;
`epoch` names the stream and the process that wrote to it, so that an id alone says where its reader is.

What was appended becomes visible once in a turn of the event loop: first on disk, where the stream is kept, then to readers, in
one write each. So nobody has seen what a killed gateway would forget. It leaves the ring a turn later at the earliest: whoever
was waiting has it by then, however much came at once.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

from msgspec import Struct

from protocol.errors import Busy, ProtocolError
from supervisor.gateway.frames import frame
from supervisor.gateway.record import Head, Record, Restored

RING_FRAMES = 2048
RING_BYTES = 1_048_576
LEAST_FRAMES = 4  # stay however large they are: the last ones say how it ended, and repeat the whole answer
READERS = 256  # of one stream


class Cursor(Struct, frozen=True):
    """A place in a stream, as `Last-Event-ID` names it: the last event that its reader has."""

    epoch: str
    seq: int


def read_cursor(text: str) -> Cursor | None:
    """The cursor that a text is; None for one that no event of ours was called."""
    epoch, _, seq = text.strip().rpartition("-")
    if not epoch or not seq.isascii() or not seq.isdecimal() or len(seq) > 18:
        return None
    return Cursor(epoch, int(seq))


class Stream:
    """The events of one piece of work. One writer: whoever does the work.

    `refused` is set where the work failed before its first event: a first reader can then still be told so by a status.
    `ended` is a Unix time. `restored` is what a file says of it: then events go on behind those. `first` is the number of the
    first event where somebody else counts them. `spoke` is told once after how many seconds it began to say something.
    """

    def __init__(
        self,
        head: Head,
        *,
        record: Record | None = None,
        epoch: str | None = None,
        restored: Restored | None = None,
        first: int = 0,
        ring_bytes: Callable[[], int] = lambda: RING_BYTES,
        spoke: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.head = head
        self.ended: float | None = None
        self.failed = False
        self.refused: ProtocolError | None = None
        self.readers: set[Reader] = set()
        self._came: Callable[[Stream], None] | None = None
        self._left: Callable[[Stream, float | None], None] | None = None
        self._record = record
        self._ring_bytes = ring_bytes
        self._spoke: Callable[[float], None] | None = spoke
        self._frames: deque[bytes] = deque(restored.frames if restored else ())
        self._first = first  # the number of the oldest frame in the ring
        self._visible = first + len(self._frames)  # frames before this number may be read
        self._bytes = sum(map(len, self._frames))
        self._fresh: list[bytes] = []
        self._is_due = False
        self._is_from_disk = restored is not None
        self._epochs = dict(restored.epochs) if restored else {epoch or new_epoch(): 0}  # each with its first number
        self._epoch = list(self._epochs)[-1]
        self._loop = asyncio.get_running_loop()
        self._born = self._loop.time()
        self._published: asyncio.Event | None = None  # made by the first who waits for what is due
        if restored is not None:
            self.ended, self.failed = restored.ended, restored.failed

    # -- writing --------------------------------------------------------------------------------------------------------

    def append(self, event: str, data: bytes) -> None:
        """Adds one event with its data, a line of JSON. Never waits."""
        self.append_frame(frame(event, data, f"{self._epoch}-{self.count}"))

    def append_frame(self, one: bytes) -> None:
        """Adds an event that has its number already."""
        assert self.ended is None, f"stream {self.head.id} is over"
        self._frames.append(one)
        self._fresh.append(one)
        self._bytes += len(one)
        self._publish_soon()

    def speaks(self) -> None:
        """It says something of its answer, and not only that it waits. Only the first time counts."""
        if self._spoke is not None:
            self._spoke(self._loop.time() - self._born)
            self._spoke = None

    def skip_to(self, number: int) -> None:
        """Goes on at a later number: what is between was lost, and readers are told how much that is."""
        self._first, self._bytes = number, 0
        self._frames.clear()
        self._publish_soon()

    def end(self, at: float | None = None, *, failed: bool = False) -> None:
        """Nothing follows. Readers are given the rest, and then let go."""
        if self.ended is None:
            self.ended = time.time() if at is None else at
            self.failed = failed
            self._publish_soon()

    def take_over(self, record: Record, restored: Restored) -> None:
        """Goes on writing in the place of a gateway that is gone, behind what is on disk."""
        self._record = record
        self._epoch = new_epoch()
        self._epochs[self._epoch] = self.count
        record.begin(self._epoch, restored)

    async def published(self) -> None:
        """Returns when what was appended until now may be read."""
        if self._is_due:
            self._published = self._published or asyncio.Event()
            await self._published.wait()

    def _publish_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._publish)

    def _publish(self) -> None:
        fresh, self._fresh, self._is_due = self._fresh, [], False
        if self._record is not None:
            if fresh:
                self._record.write(fresh)
            if self.ended is not None:
                self._record.end(self.ended, failed=self.failed)
        self._visible = self.count
        if self._published is not None:
            self._published.set()
            self._published = None
        for reader in self.readers:
            reader.wake()
        if self._is_over_full():
            self._loop.call_soon(self.trim)  # behind the readers who were just woken

    def _is_over_full(self) -> bool:
        size = len(self._frames)
        return size > RING_FRAMES or (size > LEAST_FRAMES and self._bytes > self._ring_bytes())

    def trim(self) -> None:
        """Throws away the oldest events, where the ring holds more than it may."""
        while self._first < self._visible and self._is_over_full():
            self._bytes -= len(self._frames.popleft())
            self._first += 1

    # -- what is known of it ---------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Nothing follows, and everything may be read."""
        return self.ended is not None and not self._is_due

    @property
    def is_on_disk(self) -> bool:
        """Everything of it, for a reader of its file."""
        return self._record.is_whole if self._record is not None else self._is_from_disk

    @property
    def was_to_be_kept(self) -> bool:
        """It has a file, whether or not the disk took everything."""
        return self._record is not None or self._is_from_disk

    @property
    def count(self) -> int:
        """How many events there were until now."""
        return self._first + len(self._frames)

    @property
    def first(self) -> int:
        """The number of the oldest event that can still be read."""
        return self._first

    @property
    def visible(self) -> int:
        """How many events there were until now that may be read."""
        return self._visible

    @property
    def cursor(self) -> str:
        """The id of the last event that may be read; "" where there is none."""
        return f"{self._epoch}-{self._visible - 1}" if self._visible else ""

    @property
    def size(self) -> int:
        """Bytes of the events in its ring."""
        return self._bytes

    @property
    def epochs(self) -> list[str]:
        return list(self._epochs)

    def place(self, cursor: Cursor) -> int | None:
        """The number of the first event that a reader with this cursor lacks; None where it is none of ours."""
        begin = self._epochs.get(cursor.epoch)
        if begin is None:
            return None
        later = list(self._epochs.values())[list(self._epochs).index(cursor.epoch) + 1 :]
        # Beyond the end of its epoch is whoever had read what a full disk did not take before a restart: all of it, perhaps.
        return min(max(cursor.seq + 1, begin), self.count, *later)

    def read(self, since: int) -> list[bytes]:
        """The events from a number on that may be read, and that the ring still has."""
        start, stop = max(since - self._first, 0), self._visible - self._first
        if stop - start <= 8:  # the usual case; a deque finds what is near its ends at once
            return [self._frames[index] for index in range(start, stop)]
        return list(islice(self._frames, start, stop))

    # -- readers --------------------------------------------------------------------------------------------------------

    def reader(self, since: int = 0, *, grace: float | None = None, opening: bytes = b"") -> Reader:
        """A new reader from this number on, closed by whoever opens it. Raises Busy when there are as many as may be.

        `grace` is how long the work goes on when this reader was the last and leaves; None is for ever. `opening` is what it
        is given before everything else.
        """
        if len(self.readers) >= READERS:
            raise Busy(f"{READERS} readers follow this stream already: try again later", retry_after=5.0)
        reader = Reader(self, since, grace, opening)
        self.readers.add(reader)
        if self._came is not None:
            self._came(self)
        return reader

    def on_readers(self, came: Callable[[Stream], None], left: Callable[[Stream, float | None], None]) -> None:
        """Has somebody told of every reader that comes, and of the last one that leaves, with its grace."""
        self._came, self._left = came, left

    def leave(self, reader: Reader) -> None:
        """Lets a reader go; a second time does nothing."""
        if reader in self.readers:
            self.readers.remove(reader)
            if not self.readers and self._left is not None:
                self._left(self, reader.grace)


class Reader:
    """One who follows: a place in a stream, and a way to be woken. Waits in one task."""

    __slots__ = ("_opening", "_waiting", "grace", "next", "stream")

    def __init__(self, stream: Stream, since: int, grace: float | None, opening: bytes = b"") -> None:
        self.stream = stream
        self.next = since
        self.grace = grace
        self._opening = opening
        self._waiting: asyncio.Future[None] | None = None

    @property
    def lost(self) -> int:
        """How many events that it lacks have left the ring."""
        return max(0, self.stream.first - self.next)

    @property
    def is_done(self) -> bool:
        """It has had everything that there will ever be."""
        return self.stream.is_over and self.next >= self.stream.visible

    def take(self) -> bytes:
        """Everything new, for one write; b"" where there is nothing."""
        if self._opening:
            opening, self._opening = self._opening, b""
            return opening
        if self.next >= self.stream.visible:
            return b""
        frames = self.stream.read(self.next)
        self.next = self.stream.visible
        return frames[0] if len(frames) == 1 else b"".join(frames)

    async def wait(self) -> None:
        """Returns when there may be something new, or when it is woken for another reason."""
        self._waiting = self.stream._loop.create_future()  # noqa: SLF001 - one module
        try:
            await self._waiting
        finally:
            self._waiting = None

    def wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def close(self) -> None:
        self.stream.leave(self)


def new_epoch() -> str:
    return secrets.token_hex(8)
