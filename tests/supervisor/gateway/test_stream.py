"""One stream and its readers: what is seen, in which order, and what becomes of those who are slow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Busy
from supervisor.gateway.frames import fields, frame
from supervisor.gateway.record import Head, Record, Restored, load
from supervisor.gateway.stream import LEAST_FRAMES, READERS, RING_FRAMES, Cursor, Reader, Stream, read_cursor

HEAD = Head(id="s1", kind="chat", created=1.0)
SMALL = 300  # bytes of a ring: some ten events


def stream_of(ring_bytes: int = SMALL, record: Record | None = None, restored: Restored | None = None) -> Stream:
    return Stream(HEAD, epoch="e1", record=record, restored=restored, ring_bytes=lambda: ring_bytes)


async def turns(count: int = 3) -> None:
    """Lets the loop go round: what was appended is published, readers are woken, the ring is trimmed."""
    for _ in range(count):
        await asyncio.sleep(0)


def say(stream: Stream, count: int = 1, size: int = 1) -> None:
    for _ in range(count):
        stream.append("t", b"%d" % stream.count + b"x" * size)


def numbers(data: bytes) -> list[int]:
    """The events in what a reader took, by the numbers in their ids."""
    blocks = data.decode().removesuffix("\n\n").split("\n\n") if data else []
    return [int(block.split("\n")[0].rpartition("-")[2]) for block in blocks]


# -- what a reader sees -----------------------------------------------------------------------------------------------------


async def test_every_event_has_the_next_number_and_its_place() -> None:
    stream = stream_of()
    reader = stream.reader()
    say(stream, 3)
    await turns()
    taken = reader.take()
    assert taken.startswith(b"id: e1-0\nevent: t\ndata: 0x\n\n")
    assert numbers(taken) == [0, 1, 2]
    assert reader.take() == b""


async def test_nothing_can_be_read_before_the_turn_has_ended() -> None:
    stream = stream_of()
    reader = stream.reader()
    say(stream)
    assert reader.take() == b""
    assert (stream.count, stream.visible) == (1, 0)
    with anyio.fail_after(5):
        await stream.published()
        assert numbers(reader.take()) == [0]
        await stream.published()  # nothing is due: returns at once


async def test_what_a_reader_sees_is_on_disk(tmp_path: Path) -> None:
    record = Record.create(tmp_path, HEAD, "e1")
    stream = stream_of(record=record)
    reader = stream.reader()
    with anyio.fail_after(5):
        for number in range(5):
            say(stream, 2)
            await reader.wait()
            reader.take()
            restored = load(record.path)
            assert restored is not None
            assert len(restored.frames) == stream.visible == 2 * number + 2
        stream.end(failed=True)
        await reader.wait()
    restored = load(record.path)
    assert restored is not None
    assert restored.ended == stream.ended
    assert restored.failed


async def test_a_disk_that_takes_nothing_does_not_stop_a_stream(tmp_path: Path) -> None:
    (tmp_path / "streams").write_text("in the way")
    record = Record.create(tmp_path / "streams", HEAD, "e1")
    stream = stream_of(record=record)
    reader = stream.reader()
    say(stream, 3)
    stream.end()
    await turns()
    assert numbers(reader.take()) == [0, 1, 2]
    assert reader.is_done
    assert not stream.is_on_disk
    assert stream.was_to_be_kept


async def test_a_reader_is_done_when_it_has_had_everything_and_nothing_follows() -> None:
    stream = stream_of()
    reader = stream.reader()
    say(stream)
    stream.end(at=2000.0)
    stream.end(at=3000.0, failed=True)  # a second one changes nothing
    assert not stream.is_over, "its last events cannot be read yet"
    await turns()
    assert (stream.is_over, reader.is_done) == (True, False)
    reader.take()
    assert reader.is_done
    assert (stream.ended, stream.failed) == (2000.0, False)


async def test_a_waiting_reader_is_woken_by_an_event_by_the_end_and_by_hand() -> None:
    stream = stream_of()
    reader = stream.reader()
    with anyio.fail_after(5):
        for cause in (lambda: say(stream), reader.wake, stream.end):
            async with anyio.create_task_group() as group:
                group.start_soon(reader.wait)
                await turns()
                cause()


# -- the ring ---------------------------------------------------------------------------------------------------------------


async def test_a_burst_larger_than_the_ring_reaches_a_waiting_reader_whole() -> None:
    stream, seen = stream_of(), []
    reader = stream.reader()

    async def follow() -> None:
        while not reader.is_done:
            assert reader.lost == 0
            seen.extend(numbers(reader.take()))
            if not reader.is_done:
                await reader.wait()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            for _ in range(5):
                await asyncio.sleep(0)
                say(stream, 200)
            stream.end()
    assert seen == list(range(1000))


async def test_the_ring_keeps_to_its_bytes_a_turn_later() -> None:
    stream = stream_of(SMALL)
    for _ in range(20):
        say(stream, 7, size=10)
        await turns()
        assert stream.size <= SMALL
        assert stream.size == sum(map(len, stream.read(stream.first)))
    assert stream.first > 0


async def test_the_ring_keeps_to_its_number_of_events() -> None:
    stream = stream_of(2**30)
    say(stream, RING_FRAMES + 10)
    await turns()
    assert len(stream.read(0)) == RING_FRAMES
    assert stream.first == 10


async def test_the_last_events_stay_however_large_they_are() -> None:
    stream = stream_of(SMALL)
    say(stream, 10, size=10 * SMALL)
    await turns()
    assert len(stream.read(0)) == LEAST_FRAMES


async def test_what_cannot_be_read_yet_is_never_thrown_away() -> None:
    stream = stream_of(SMALL)
    say(stream, 100)
    await asyncio.sleep(0)  # published, not yet trimmed
    say(stream, 100)
    await asyncio.sleep(0)  # trimmed
    assert stream.count == 200
    assert numbers(b"".join(stream.read(stream.first)))[-1] == stream.visible - 1
    assert stream.first <= 100


async def test_a_ring_that_shrinks_is_trimmed_with_the_next_event() -> None:
    size = 10_000
    stream = Stream(HEAD, ring_bytes=lambda: size)
    say(stream, 100)
    await turns()
    assert stream.first == 0
    size = SMALL
    say(stream)
    await turns()
    assert stream.size <= SMALL


# -- any readers, in any order ----------------------------------------------------------------------------------------------


class Follower:
    """A reader as a browser is one: it comes back with the id of the last event that it had."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.reader: Reader | None = None
        self.last = -1  # the number of the last event that it has, or was told of by a reset
        self.cursor: Cursor | None = None  # of the last event that it has itself

    def join(self) -> None:
        if self.reader is None:
            since = self.stream.place(self.cursor) if self.cursor else 0
            assert since is not None
            assert since == (self.cursor.seq + 1 if self.cursor else 0)
            self.last = since - 1
            self.reader = self.stream.reader(since)

    def leave(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    def look(self, told: Sequence[bytes]) -> None:
        """Takes what there is. What it lacks is told by a snapshot of everything up to now, as Streams.behind gives it."""
        if self.reader is None:
            return
        if self.reader.lost:
            assert self.reader.next + self.reader.lost == self.stream.first
            assert self.reader.next == self.last + 1
            self.reader.next = self.stream.visible  # the snapshot covers told[:visible]
            self.last = self.stream.visible - 1
            return
        taken = self.reader.take()
        assert taken == b"".join(told[self.last + 1 : self.stream.visible])
        if taken:
            self.last = numbers(taken)[-1]
            self.cursor = Cursor("e1", self.last)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.integers(0, 12), st.integers(0, 60)),
        st.tuples(st.just("turn"), st.integers(1, 3), st.just(0)),
        st.tuples(st.sampled_from(["join", "leave", "look", "look"]), st.integers(0, 3), st.just(0)),
    ),
    max_size=60,
)


@given(steps=STEPS)
async def test_everybody_has_every_event_once_and_in_order_or_is_told_how_many_it_lacks(
    steps: list[tuple[str, int, int]],
) -> None:
    stream, told = stream_of(), []
    followers = [Follower(stream) for _ in range(4)]
    for what, count, size in steps:
        match what:
            case "say":
                for _ in range(count):
                    told.append(frame("t", b"x" * size, f"e1-{len(told)}"))
                    stream.append("t", b"x" * size)
            case "turn":
                await turns(count)
            case _:
                one = followers[count]
                one.look(told) if what == "look" else getattr(one, what)()
    stream.end()
    await turns()
    for one in followers:
        one.join()
        assert one.reader is not None
        while not one.reader.is_done:
            one.look(told)
        assert one.last == len(told) - 1
        one.leave()
    assert not stream.readers


# -- cursors ----------------------------------------------------------------------------------------------------------------


@given(epoch=st.from_regex(r"[0-9a-f]{16}", fullmatch=True), seq=st.integers(0, 10**18 - 1))
def test_an_id_is_read_as_the_cursor_that_it_is(epoch: str, seq: int) -> None:
    assert read_cursor(f"{epoch}-{seq}") == read_cursor(f" {epoch}-{seq}\t") == Cursor(epoch, seq)


@pytest.mark.parametrize(
    "text", ["", "-", "-1", "e", "e-", "e--1x", "e-1.5", "e-+1", "e-1_0", "e-٣", "e-²", "e-" + "9" * 19, "7"]
)
def test_what_is_no_id_of_ours_is_no_cursor(text: str) -> None:
    assert read_cursor(text) is None


@given(text=st.text(max_size=40))
def test_no_text_breaks_the_reading_of_a_cursor(text: str) -> None:
    cursor = read_cursor(text)
    assert cursor is None or (cursor.epoch and 0 <= cursor.seq < 10**18)


def written_by(count: int, **epochs: int) -> Stream:
    """A stream of so many events; each epoch with the number of its first one."""
    frames = [frame("t", b"{}", f"e-{number}") for number in range(count)]
    return stream_of(restored=Restored(head=HEAD, epochs=epochs, frames=frames, ended=2.0, failed=True, size=0))


@pytest.mark.parametrize(
    ("epochs", "cursor", "place"),
    [
        ({"a": 0}, Cursor("a", 0), 1),
        ({"a": 0}, Cursor("a", 4), 5),
        ({"a": 0}, Cursor("a", 9), 5),
        ({"a": 0, "b": 3}, Cursor("a", 1), 2),
        ({"a": 0, "b": 3}, Cursor("a", 2), 3),
        ({"a": 0, "b": 3}, Cursor("a", 4), 3),  # read what a full disk did not take: the rest is what b wrote
        ({"a": 0, "b": 3}, Cursor("b", 3), 4),
        ({"a": 0, "b": 0}, Cursor("a", 2), 0),  # the disk took nothing
        ({"a": 0, "b": 3, "c": 3}, Cursor("a", 7), 3),
        ({"a": 0, "b": 3, "c": 3}, Cursor("b", 7), 3),
        ({"a": 0, "b": 3, "c": 3}, Cursor("c", 3), 4),
        ({"a": 0, "b": 3}, Cursor("c", 3), None),
    ],
)
async def test_a_reader_has_all_that_follows_its_cursor(
    epochs: dict[str, int], cursor: Cursor, place: int | None
) -> None:
    assert written_by(5, **epochs).place(cursor) == place


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), beyond=st.integers(0, 10))
async def test_an_id_says_where_its_reader_is_whoever_wrote_the_event(lengths: list[int], beyond: int) -> None:
    """A stream that several gateways wrote to, one after the other: each with an epoch of its own."""
    epochs, frames = {}, []
    for number, length in enumerate(lengths):
        epochs[f"w{number}"] = len(frames)
        frames += [frame("t", b"", f"w{number}-{len(frames) + at}") for at in range(length)]
    restored = Restored(head=HEAD, epochs=epochs, frames=frames, ended=2.0, failed=False, size=0)
    stream = stream_of(restored=restored)
    for number, one in enumerate(frames):
        cursor = read_cursor(one.decode().split("\n")[0].removeprefix("id: "))
        assert cursor is not None
        assert stream.place(cursor) == number + 1
    for number, epoch in enumerate(epochs):
        ends = sum(lengths[: number + 1])
        assert stream.place(Cursor(epoch, ends + beyond)) == ends, "it had more than the disk took: nothing is skipped"
    assert stream.place(Cursor("foreign", 0)) is None


async def test_a_successor_goes_on_counting_under_a_name_of_its_own(tmp_path: Path) -> None:
    record = Record.create(tmp_path, HEAD, "e1")
    first = stream_of(record=record)
    say(first, 2)
    await turns()
    record.close()  # it was killed
    restored, taken = load(record.path), Record.take_over(record.path)
    assert restored is not None
    assert taken is not None
    second = stream_of(restored=restored)
    second.take_over(taken, restored)
    second.append("t", b"2x")
    second.end()
    await turns()
    reader = second.reader(1)
    assert numbers(reader.take()) == [1, 2]
    assert len(second.epochs) == 2
    assert second.place(Cursor(second.epochs[1], 2)) == 3
    again = load(record.path)
    assert again is not None
    assert [fields(one) for one in again.frames] == [("t", b"0x"), ("t", b"1x"), ("t", b"2x")]


# -- who reads ----------------------------------------------------------------------------------------------------------------


async def test_a_stream_has_only_so_many_readers() -> None:
    stream = stream_of()
    readers = [stream.reader() for _ in range(READERS)]
    with pytest.raises(Busy, match="256 readers follow this stream already"):
        stream.reader()
    readers[0].close()
    stream.reader()


async def test_whoever_wants_to_know_is_told_of_every_reader_and_of_the_last_one_that_leaves() -> None:
    stream, told = stream_of(), []
    stream.on_readers(lambda _: told.append("came"), lambda _, grace: told.append(grace))
    first, second = stream.reader(grace=10.0), stream.reader(grace=0.0)
    for reader in (first, first, second, second):
        reader.close()
    assert told == ["came", "came", 0.0]
