"""All streams of the gateway: those that are written here, those that are over, and those that another gateway still writes.

Each piece of work runs in a task of its own, in the gateway's task group: it goes on or ends by its own rules, whoever reads.
What is over and on disk leaves the memory, and is read again for a reader that asks for it. An hour after its end it is
removed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
from msgspec import Struct

from protocol.errors import BadRequest, HouseError, Internal, NotFound, ProtocolError, from_wire
from supervisor.gateway import record
from supervisor.gateway.frames import fields, frame
from supervisor.gateway.histogram import Histogram
from supervisor.gateway.problem import TooMany
from supervisor.gateway.record import Head, Record, Restored
from supervisor.gateway.stream import LEAST_FRAMES, RING_BYTES, Cursor, Reader, Stream, new_epoch
from supervisor.gateway.vocabulary import Event, Vocabulary

logger = logging.getLogger("chorus.gateway")

Work = Callable[[Stream], Awaitable[None]]

KEPT_FOR = 3600.0  # seconds from the end of a stream
ALL_RINGS = 67_108_864  # bytes, shared by the rings of all streams; twice that at most, with what is not trimmed yet
LEAST_RING = 65_536
FULL_RINGS = ALL_RINGS // RING_BYTES  # so many streams have all that a ring may hold
TAIL_EVERY = 0.1  # seconds between looks at what another gateway writes
REAP_EVERY = 30.0
FIRST_TOKEN = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)  # seconds, for a histogram


class Withdrawn(HouseError):
    """Nobody wants the answer any more."""

    code = "cancelled"


class Interrupted(HouseError):
    """This gateway, or the one before it, ended; whoever was asked has not failed."""

    code = "gateway_restarted"


_OURS: dict[str, type[HouseError]] = {cls.code: cls for cls in (Withdrawn, Interrupted)}


def ended_by(code: str, sentence: str, partial: str = "", retry_after: float | None = None) -> ProtocolError:
    """What ended a stream, from what its last event says of it."""
    ours = _OURS.get(code)
    if ours is None:
        return from_wire(code, sentence, partial, retry_after)
    return ours(sentence, partial=partial, retry_after=retry_after)


class _Run:
    """The work behind one live stream. `why` is set by whoever cancels it."""

    def __init__(self, stream: Stream, *, is_endless: bool) -> None:
        self.stream = stream
        self.scope = anyio.CancelScope()
        self.why: ProtocolError | None = None
        self.alone: asyncio.TimerHandle | None = None  # runs while nobody reads
        self.is_endless = is_endless

    def cancel(self, why: ProtocolError) -> None:
        if self.why is None:
            self.why = why
            self.scope.cancel()


class _Kept(Struct, frozen=True):
    """A stream that is on disk: over, or written by another gateway where `ended` is None."""

    head: Head
    ended: float | None


class Streams:
    """The one owner of every stream. `most` is how much work may be under way at once.

    `spoke` has how long answers took to begin.
    """

    def __init__(self, folder: Path, vocabularies: Iterable[Vocabulary], most: int) -> None:
        self._folder = folder
        self._vocabularies = {one.name: one for one in vocabularies}
        self._most = most
        self.spoke = Histogram(*FIRST_TOKEN)
        self._runs: dict[str, _Run] = {}
        self._open: dict[str, Stream] = {}  # in memory: live, read at this moment, or not on disk
        self._kept: dict[str, _Kept] = {}
        self._of_epoch: dict[str, str] = {}
        self._of_retry: dict[tuple[str, str], str] = {}  # by owner and retry key
        self._draining: ProtocolError | None = None
        self._ended = anyio.Event()  # a new one after each end
        self._group: asyncio.TaskGroup

    @property
    def under_way(self) -> int:
        return len(self._runs)

    @property
    def in_memory(self) -> int:
        return len(self._open)

    @property
    def readers(self) -> int:
        return sum(len(stream.readers) for stream in self._open.values())

    # -- the life of them all ------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Takes up what is on disk, then keeps house until cancelled; then all work is cancelled, too."""
        # asyncio's own: a task of anyio's needs three kilobytes more, and there may be a thousand that only wait.
        async with asyncio.TaskGroup() as self._group:
            await self._take_up()
            task_status.started()
            while True:
                await anyio.sleep(REAP_EVERY)
                await self._reap(time.time() - KEPT_FOR)

    async def drain(self, why: ProtocolError, grace: float) -> None:
        """Lets what is under way end within `grace` seconds, and ends the rest for this reason. New work is refused."""
        self._draining = why
        for run in self._runs.values():
            if run.is_endless:
                run.scope.cancel()  # and nothing is said: whoever follows comes back, to our successor
        with anyio.move_on_after(grace):
            await self._all_ended()
        for run in list(self._runs.values()):
            run.cancel(why)
        await self._all_ended()

    async def _all_ended(self) -> None:
        while self._runs:
            await self._ended.wait()

    # -- work ---------------------------------------------------------------------------------------------------------------

    def begin(
        self,
        kind: str,
        work: Work,
        *,
        owner: str = "",
        retry_key: str = "",
        asked: bytes = b"",
        is_kept: bool = True,
        is_endless: bool = False,
    ) -> Stream:
        """A new stream with its work begun; or the stream that the same request began before, told by its retry key.

        `asked` is the request that the key belongs to. Work that is endless is ended first by `drain`. Raises TooMany where as
        much as may be is under way, and BadRequest where the key was that of another request.
        """
        fingerprint = hashlib.sha256(asked).hexdigest() if retry_key else ""
        head = Head(
            id=secrets.token_urlsafe(16),
            kind=kind,
            created=time.time(),
            owner=owner,
            retry_key=retry_key,
            fingerprint=fingerprint,
        )
        if self._draining is not None:
            raise self._draining
        if len(self._runs) >= self._most:
            raise TooMany(f"{self._most} answers are under way: wait, or raise gateway.streams", retry_after=1.0)
        epoch = new_epoch()
        kept_in = Record.create(self._folder, head, epoch) if is_kept else None
        stream = self._opened(
            Stream(head, record=kept_in, epoch=epoch, ring_bytes=self._ring_bytes, spoke=self.spoke.observe)
        )
        run = self._runs[head.id] = _Run(stream, is_endless=is_endless)
        self._group.create_task(self._work(run, work))
        return stream

    async def begun_before(self, owner: str, retry_key: str, asked: bytes) -> Stream | None:
        """The stream that the same request began within the hour, and that did not fail.

        Raises BadRequest where the retry key was another request's.
        """
        stream_id = self._of_retry.get((owner, retry_key)) if retry_key else None
        if stream_id is None:
            return None
        try:
            stream = await self.find(stream_id, owner)
        except NotFound:
            return None
        if stream.failed:
            return None  # asked again, it is done again
        if stream.head.fingerprint != hashlib.sha256(asked).hexdigest():
            raise BadRequest(
                f"Idempotency-Key: {retry_key!r} was that of another request: a new request needs a new key"
            )
        return stream

    def cancel(self, stream: Stream) -> bool:
        """Ends the work behind a stream; False where there is none any more, or it is another gateway's."""
        run = self._runs.get(stream.head.id)
        if run is not None:
            run.cancel(Withdrawn("it was cancelled"))
        return run is not None

    async def _work(self, run: _Run, work: Work) -> None:
        error: ProtocolError | None = None
        try:
            with run.scope:
                await work(run.stream)
            if run.scope.cancelled_caught:
                error = run.why
        except ProtocolError as failed:
            error = failed
        except Exception:
            trace_id = secrets.token_hex(6)
            logger.exception("the work behind stream %s failed [%s]", run.stream.head.id, trace_id)
            error = Internal(f"the gateway failed: chorus logs gateway has the trace {trace_id}")
        with anyio.CancelScope(shield=True):
            await self._conclude(run, error)

    async def _conclude(self, run: _Run, error: ProtocolError | None) -> None:
        stream = run.stream
        if error is not None:
            if stream.count == 0:
                stream.refused = error
            await self._fail(stream, error)
        stream.end(failed=error is not None)
        if run.alone is not None:
            run.alone.cancel()
        del self._runs[stream.head.id]
        self._ended.set()
        self._ended = anyio.Event()
        await stream.published()
        self._let_go(stream)

    async def _fail(self, stream: Stream, error: ProtocolError) -> None:
        """Writes the last events of work that failed."""
        vocabulary = self._vocabularies[stream.head.kind]
        _, frames = await self._frames(stream)
        for event, data in vocabulary.failed(error, vocabulary.fold(map(fields, frames))):
            stream.append(event, data)

    async def behind(self, reader: Reader) -> bytes | None:
        """What a reader is told whose events have left the ring: it has caught up then, but for the end of what is over.

        Where its dialect has no word for that, it is given what it lacks, as long as that is on disk. None: it can only be let
        go.
        """
        stream, lost, before = reader.stream, reader.lost, reader.next
        vocabulary = self._vocabularies[stream.head.kind]
        first, frames = await self._frames(stream)
        reader.next = first + len(frames)
        if vocabulary.behind is None:
            return b"".join(frames[before - first :]) if before >= first else None
        if stream.is_over:
            reader.next = max(before, reader.next - LEAST_FRAMES)  # these say how it ended, and are sent as they are
        return frame(*vocabulary.behind(lost, vocabulary.fold(map(fields, frames[: reader.next - first]))))

    async def outcome(self, stream: Stream, reader: Reader) -> list[Event]:
        """The last events of a stream, once it is over: at least those that say how it ended."""
        while not stream.is_over:
            await reader.wait()
        return [fields(one) for one in stream.read(stream.first)[-LEAST_FRAMES:]]

    async def _frames(self, stream: Stream) -> tuple[int, list[bytes]]:
        """The events of a stream from a number on: all of them where those that left its ring are on disk."""
        await stream.published()
        first, frames = stream.first, stream.read(stream.first)
        if first and stream.is_on_disk:
            restored = await anyio.to_thread.run_sync(record.load, self._path(stream.head.id))
            if restored is not None:
                return 0, restored.frames
        return first, frames

    def _ring_bytes(self) -> int:
        return max(LEAST_RING, min(RING_BYTES, ALL_RINGS // max(1, len(self._open))))

    # -- readers ------------------------------------------------------------------------------------------------------------

    def _came(self, stream: Stream) -> None:
        run = self._runs.get(stream.head.id)
        if run is not None and run.alone is not None:
            run.alone.cancel()
            run.alone = None

    def _left(self, stream: Stream, grace: float | None) -> None:
        """The last reader is gone: the work has its grace, what is over leaves the memory."""
        run = self._runs.get(stream.head.id)
        if run is None:
            self._let_go(stream)
        elif grace is not None:
            why = Withdrawn("everybody who read the answer has left")
            if grace <= 0:
                run.cancel(why)
            else:
                run.alone = asyncio.get_running_loop().call_later(grace, run.cancel, why)

    # -- finding ------------------------------------------------------------------------------------------------------------

    async def find(self, stream_id: str, owner: str = "") -> Stream:
        """The stream of this id, or of the request with this retry key: who has no answer yet knows nothing but that.

        Whoever does not read it at once must find it again. Raises NotFound, for another's too.
        """
        stream_id = self._of_retry.get((owner, stream_id), stream_id)
        stream = self._open.get(stream_id)
        if stream is None:
            if stream_id not in self._kept:
                await self._take_up()  # another gateway may have begun it
            if stream_id in self._kept:
                stream = await self._read(stream_id)
        if stream is None or stream.head.owner != owner:
            raise NotFound(f"there is no stream {stream_id[:64]!r}: finished ones are kept for an hour")
        return stream

    async def find_by_cursor(self, cursor: Cursor, owner: str = "") -> Stream:
        """The stream that this is a place in. Raises NotFound."""
        if cursor.epoch not in self._of_epoch:
            await self._take_up()
        stream_id = self._of_epoch.get(cursor.epoch)
        if stream_id is None:
            raise NotFound("the stream of this Last-Event-ID is gone, finished ones are kept for an hour: ask again")
        return await self.find(stream_id, owner)

    async def _read(self, stream_id: str) -> Stream | None:
        """A stream from disk. One that is not over is another gateway's, and followed there."""
        restored = await anyio.to_thread.run_sync(record.load, self._path(stream_id))
        if stream_id in self._open:
            return self._open[stream_id]  # somebody else asked at the same time
        if restored is None:
            self._forget(stream_id)
            return None
        stream = self._opened(Stream(restored.head, restored=restored, ring_bytes=self._ring_bytes))
        if restored.ended is None:
            self._group.create_task(self._tail(stream))
        else:  # whoever asked reads it before anything else runs, or did not want to
            asyncio.get_running_loop().call_soon(self._let_go, stream)
        return stream

    async def _tail(self, stream: Stream) -> None:
        """Goes on with what another gateway writes, until it ends; or until its writer ends, and then in its place."""
        path = self._path(stream.head.id)
        while True:
            taken = Record.take_over(path)  # before the look: what is read then is all there will be
            restored = await anyio.to_thread.run_sync(record.load, path)
            if restored is None:
                stream.end(failed=True)
                break
            for one in restored.frames[stream.count :]:
                stream.append_frame(one)
            if restored.ended is not None:
                stream.end(restored.ended, failed=restored.failed)
                break
            if taken is not None:
                stream.take_over(taken, restored)
                await self._interrupted(stream)
                break
            await anyio.sleep(TAIL_EVERY)
        if taken is not None:
            taken.close()
        await stream.published()
        self._let_go(stream)

    async def _interrupted(self, stream: Stream) -> None:
        await self._fail(
            stream, Interrupted("the gateway ended before the answer was whole: ask again", retry_after=1.0)
        )
        stream.end(failed=True)
        await stream.published()

    # -- the folder -----------------------------------------------------------------------------------------------------------

    async def _take_up(self) -> None:
        """Learns of every stream on disk that is not known; those whose writer is gone are ended in its place."""
        for path, restored in await anyio.to_thread.run_sync(self._unknown):
            if restored.head.id in self._kept or restored.head.id in self._open:
                continue  # somebody else has learnt of it meanwhile
            self._note(restored.head, restored.ended, restored.epochs, failed=restored.failed)
            if restored.ended is None and (taken := Record.take_over(path)) is not None:
                await self._succeed(path, taken)

    async def _succeed(self, path: Path, taken: Record) -> None:
        """Ends a stream whose writer is gone. It may have gone on until we had the lock."""
        restored = await anyio.to_thread.run_sync(record.load, path)
        if restored is None or restored.ended is not None:
            taken.close()
            if restored is not None:
                self._note(restored.head, restored.ended, restored.epochs, failed=restored.failed)
            return
        stream = self._opened(Stream(restored.head, restored=restored, ring_bytes=self._ring_bytes))
        stream.take_over(taken, restored)
        await self._interrupted(stream)
        self._let_go(stream)

    def _unknown(self) -> list[tuple[Path, Restored]]:
        known = {*self._kept, *self._open}
        paths = [path for path in self._folder.glob(f"*{record.SUFFIX}") if path.stem not in known]
        return [(path, restored) for path in paths if (restored := record.load(path)) is not None]

    async def _reap(self, before: float) -> None:
        for stream in list(self._open.values()):
            if stream.ended is not None and stream.ended < before and not stream.readers:
                self._remove(stream.head.id)
        for stream_id, kept in list(self._kept.items()):
            if kept.ended is not None and kept.ended < before and stream_id not in self._open:
                self._remove(stream_id)
        # What another gateway began, and nobody asked here for.
        await anyio.to_thread.run_sync(record.remove_expired, self._folder, KEPT_FOR)

    def _path(self, stream_id: str) -> Path:
        return self._folder / f"{stream_id}{record.SUFFIX}"

    def _opened(self, stream: Stream) -> Stream:
        self._open[stream.head.id] = stream
        count = len(self._open)
        if count >= FULL_RINGS and count & (count - 1) == 0:  # everybody's share has halved since it was last looked at
            for one in self._open.values():
                one.trim()
        stream.on_readers(self._came, self._left)
        self._note(stream.head, stream.ended, stream.epochs, failed=stream.failed, is_on_disk=stream.is_on_disk)
        return stream

    def _note(
        self, head: Head, ended: float | None, epochs: Iterable[str], *, failed: bool, is_on_disk: bool = True
    ) -> None:
        """Has a stream found by its id, by its cursors, and unless it failed by the request that began it."""
        if is_on_disk:
            self._kept[head.id] = _Kept(head, ended)
        for epoch in epochs:
            self._of_epoch[epoch] = head.id
        if head.retry_key and not failed:
            self._of_retry[head.owner, head.retry_key] = head.id
        elif head.retry_key and self._of_retry.get((head.owner, head.retry_key)) == head.id:
            del self._of_retry[head.owner, head.retry_key]  # asked again, it is done again

    def _let_go(self, stream: Stream) -> None:
        """Out of memory with what is over and is read by nobody; what is not on disk stays while there is room."""
        head = stream.head
        if not stream.is_over or stream.readers or head.id not in self._open:
            return
        if stream.is_on_disk:
            self._note(head, stream.ended, stream.epochs, failed=stream.failed)
            del self._open[head.id]
        elif not stream.was_to_be_kept or len(self._open) > self._most:
            self._forget(head.id)

    def _remove(self, stream_id: str) -> None:
        self._forget(stream_id)
        self._path(stream_id).unlink(missing_ok=True)

    def _forget(self, stream_id: str) -> None:
        stream = self._open.pop(stream_id, None)
        kept = self._kept.pop(stream_id, None)
        head = stream.head if stream else kept.head if kept else None
        if head is not None and self._of_retry.get((head.owner, head.retry_key)) == stream_id:
            del self._of_retry[head.owner, head.retry_key]
        for epoch in [epoch for epoch, of in self._of_epoch.items() if of == stream_id]:
            del self._of_epoch[epoch]
