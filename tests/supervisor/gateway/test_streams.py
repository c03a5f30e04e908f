"""All streams of a gateway: found, resumed, kept, taken over from another gateway, and removed."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from serving import until

from protocol.errors import BadRequest, Draining, ModelError, NotFound, ProtocolError
from supervisor.gateway.frames import fields, json_line
from supervisor.gateway.problem import TooMany
from supervisor.gateway.record import SUFFIX, Head, Record, load
from supervisor.gateway.stream import LEAST_FRAMES, RING_BYTES, Cursor, Reader, Stream
from supervisor.gateway.streams import ALL_RINGS, KEPT_FOR, LEAST_RING, Interrupted, Streams, Work
from supervisor.gateway.vocabulary import Event, Vocabulary


def _fold(events: Iterable[Event]) -> str:
    return "".join(json.loads(data) for name, data in events if name == "say")


def _failed(error: ProtocolError, so_far: str) -> list[Event]:
    return [("failed", json_line([error.code, so_far]))]


def _behind(lost: int, so_far: str) -> Event:
    return ("reset", json_line([lost, so_far]))


TALK = Vocabulary(name="talk", fold=_fold, failed=_failed, behind=_behind)
MUTE = Vocabulary(name="mute", fold=_fold, failed=_failed)


@asynccontextmanager
async def keeping(folder: Path, most: int = 10) -> AsyncGenerator[Streams]:
    """The streams of one gateway, until the end of the block; then it has ended as a killed one has."""
    streams = Streams(folder, (TALK, MUTE), most)
    async with anyio.create_task_group() as group:
        with anyio.fail_after(10):
            await group.start(streams.run)
            yield streams
        group.cancel_scope.cancel()


def saying(*script: str | asyncio.Event | Exception) -> Work:
    """Work that says texts, waits for events, and fails."""

    async def work(stream: Stream) -> None:
        for line in script:
            match line:
                case str():
                    stream.append("say", json_line(line))
                case asyncio.Event():
                    await line.wait()
                case _:
                    raise line

    return work


def say(stream: Stream, text: str) -> None:
    stream.append("say", json_line(text))


async def everything(streams: Streams, stream: Stream, since: int = 0) -> list[tuple[str, Any]]:
    """What a reader from this number on is told, up to the end."""
    reader = stream.reader(since)
    try:
        return await rest_of(streams, reader)
    finally:
        reader.close()


async def rest_of(streams: Streams, reader: Reader) -> list[tuple[str, Any]]:
    told = b""
    while not reader.is_done:
        if reader.lost:
            told += await streams.behind(reader) or b""
        elif data := reader.take():
            told += data
        else:
            await reader.wait()
    return [(name, json.loads(data)) for name, data in map(fields, told.split(b"\n\n")[:-1])]


async def over(stream: Stream) -> None:
    await until(lambda: stream.is_over)


async def let_go(streams: Streams, stream: Stream) -> None:
    """Returns when a stream that nobody reads is over, and has left the memory."""
    await over(stream)
    await until(lambda: streams.in_memory == 0)


def files(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob(f"*{SUFFIX}"))


# -- work -------------------------------------------------------------------------------------------------------------------


async def test_work_is_followed_to_its_end(tmp_path: Path) -> None:
    async with keeping(tmp_path) as streams:
        stream = streams.begin("talk", saying("Hel", "lo"))
        assert await everything(streams, stream) == [("say", "Hel"), ("say", "lo")]
        assert (stream.failed, stream.refused, streams.under_way) == (False, None, 0)


async def test_work_that_fails_ends_with_what_had_arrived(tmp_path: Path) -> None:
    async with keeping(tmp_path) as streams:
        stream = streams.begin("talk", saying("Hel", ModelError("it broke")))
        assert await everything(streams, stream) == [("say", "Hel"), ("failed", ["model_error", "Hel"])]
        assert stream.failed
        assert stream.refused is None


async def test_work_that_fails_before_its_first_event_can_still_be_refused(tmp_path: Path) -> None:
    async with keeping(tmp_path) as streams:
        error = ModelError("it broke")
        stream = streams.begin("talk", saying(error))
        await over(stream)
        assert stream.refused is error


async def test_a_mistake_of_ours_ends_one_stream_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with keeping(tmp_path) as streams:
        stream = streams.begin("talk", saying("Hel", ZeroDivisionError()))
        assert (await everything(streams, stream))[-1] == ("failed", ["internal", "Hel"])
        assert "ZeroDivisionError" in caplog.text
        assert await everything(streams, streams.begin("talk", saying("next"))) == [("say", "next")]


async def test_only_so_much_work_is_under_way(tmp_path: Path) -> None:
    wait = asyncio.Event()
    async with keeping(tmp_path, most=2) as streams:
        first, _ = streams.begin("talk", saying(wait)), streams.begin("talk", saying(wait))
        with pytest.raises(TooMany, match="2 answers are under way"):
            streams.begin("talk", saying())
        wait.set()
        await over(first)
        await until(lambda: streams.under_way == 0)
        streams.begin("talk", saying())


async def test_what_is_cancelled_ends_with_a_word_and_only_once(tmp_path: Path) -> None:
    async with keeping(tmp_path) as streams:
        stream = streams.begin("talk", saying("Hel", asyncio.Event()))
        reader = stream.reader()
        await until(lambda: stream.visible == 1)
        assert streams.cancel(stream)
        assert await rest_of(streams, reader) == [("say", "Hel"), ("failed", ["cancelled", "Hel"])]
        assert not streams.cancel(stream)


@pytest.mark.parametrize(("grace", "ends"), [(0.0, True), (0.001, True), (60.0, False), (None, False)])
async def test_work_outlives_its_last_reader_by_his_grace(tmp_path: Path, grace: float | None, ends: bool) -> None:
    async with keeping(tmp_path) as streams:
        stream = streams.begin("talk", saying("Hel", asyncio.Event()))
        stream.reader(grace=grace).close()
        if ends:
            await over(stream)
        else:
            await anyio.lowlevel.checkpoint()
            assert stream.ended is None


async def test_whoever_comes_back_within_the_grace_keeps_it_going(tmp_path: Path) -> None:
    wait = asyncio.Event()
    async with keeping(tmp_path) as streams:
        stream = streams.begin("talk", saying("Hel", wait, "lo"))
        stream.reader(grace=0.01).close()
        reader = stream.reader()
        await anyio.sleep(0.02)
        wait.set()
        assert await rest_of(streams, reader) == [("say", "Hel"), ("say", "lo")]


async def test_draining_lets_work_end_within_its_grace_and_refuses_new_work(tmp_path: Path) -> None:
    wait = asyncio.Event()
    why = Draining("the gateway is going down")
    async with keeping(tmp_path) as streams, anyio.create_task_group() as group:
        quick, slow = streams.begin("talk", saying(wait, "yes")), streams.begin("talk", saying("no", asyncio.Event()))
        group.start_soon(streams.drain, why, 60.0)
        await anyio.lowlevel.checkpoint()
        with pytest.raises(Draining):
            streams.begin("talk", saying())
        wait.set()
        assert await everything(streams, quick) == [("say", "yes")]
        assert slow.ended is None
        await streams.drain(why, 0.0)
        assert await everything(streams, slow) == [("say", "no"), ("failed", ["draining", "no"])]


# -- slow readers -----------------------------------------------------------------------------------------------------------


async def test_a_reader_that_fell_off_the_ring_is_told_everything_so_far_and_then_the_rest_once(tmp_path: Path) -> None:
    large, wait = [str(number % 10) * 20_000 for number in range(100)], asyncio.Event()
    async with keeping(tmp_path) as streams:
        stream = streams.begin("talk", saying("first", *large, wait, "last"))
        reader = stream.reader()
        await until(lambda: stream.visible == 101 and reader.lost)
        lost = reader.lost
        told = await streams.behind(reader)
        assert told is not None
        assert json.loads(fields(told)[1]) == [lost, "first" + "".join(large)]
        assert lost == stream.first
        wait.set()
        assert await rest_of(streams, reader) == [("say", "last")]


async def test_a_reader_that_fell_behind_is_still_told_how_it_ended(tmp_path: Path) -> None:
    async with keeping(tmp_path) as streams:
        stream = streams.begin("talk", saying(*["x" * 300_000] * 10, ModelError("it broke")))
        reader = stream.reader()
        await over(stream)
        await until(lambda: reader.lost)
        lost = reader.lost
        reset, *rest = await rest_of(streams, reader)
        assert reset == ("reset", [lost, "x" * 300_000 * (11 - LEAST_FRAMES)])
        assert rest == [("say", "x" * 300_000)] * 3 + [("failed", ["model_error", "x" * 3_000_000])]


async def test_where_a_dialect_has_no_word_for_it_a_slow_reader_is_given_what_it_lacks_from_disk(
    tmp_path: Path,
) -> None:
    async with keeping(tmp_path) as streams:
        texts = [f"{number}" * 300_000 for number in range(10)]
        stream = streams.begin("mute", saying(*texts))
        reader = stream.reader(1)
        await over(stream)
        await until(lambda: reader.lost)
        assert await rest_of(streams, reader) == [("say", text) for text in texts[1:]]


async def test_where_that_is_not_on_disk_a_slow_reader_can_only_be_let_go(tmp_path: Path) -> None:
    async with keeping(tmp_path) as streams:
        stream = streams.begin("mute", saying(*["x" * 300_000] * 10, asyncio.Event()), is_kept=False)
        reader = stream.reader()
        await until(lambda: reader.lost)
        assert await streams.behind(reader) is None


async def test_the_rings_of_all_streams_share_their_memory(tmp_path: Path) -> None:
    """One stream has a megabyte. Where there are thousands, it has less, though nothing new is said in it."""
    async with keeping(tmp_path, most=5000) as streams:
        alone = streams.begin("talk", saying(*["x" * 10_000] * 200, asyncio.Event()), is_kept=False)
        await until(lambda: alone.visible == 200 and alone.first)
        assert RING_BYTES / 2 < alone.size <= RING_BYTES
        for _ in range(ALL_RINGS // LEAST_RING):
            streams.begin("talk", saying(asyncio.Event()), is_kept=False)
        assert alone.size <= 2 * LEAST_RING
        assert numbers(alone)[-1] == 199


def numbers(stream: Stream) -> list[int]:
    return [int(one.split(b"\n")[0].rpartition(b"-")[2]) for one in stream.read(stream.first)]


# -- found again --------------------------------------------------------------------------------------------------------------


async def test_what_is_over_leaves_the_memory_and_is_read_again_from_disk(tmp_path: Path) -> None:
    async with keeping(tmp_path) as streams:
        stream = streams.begin("talk", saying("Hel", "lo"))
        told = await everything(streams, stream)
        await until(lambda: streams.under_way == 0)
        again = await streams.find(stream.head.id)
        assert again is not stream
        assert await everything(streams, again) == told
        assert (again.head, again.ended) == (stream.head, stream.ended)


async def test_a_stream_is_found_by_every_cursor_in_it(tmp_path: Path) -> None:
    async with keeping(tmp_path) as streams:
        stream = streams.begin("talk", saying("Hel", "lo"))
        [epoch] = stream.epochs
        assert await streams.find_by_cursor(Cursor(epoch, 0)) is stream
        await over(stream)
        found = await streams.find_by_cursor(Cursor(epoch, 1))
        assert found.place(Cursor(epoch, 0)) == 1
        assert await everything(streams, found, since=1) == [("say", "lo")]
        with pytest.raises(NotFound, match="Last-Event-ID is gone"):
            await streams.find_by_cursor(Cursor("f" * 16, 0))


async def test_nobody_finds_what_another_key_began(tmp_path: Path) -> None:
    async with keeping(tmp_path) as streams:
        stream = streams.begin("talk", saying("secret"), owner="mine")
        [epoch] = stream.epochs
        for owner in ("", "other"):
            with pytest.raises(NotFound, match="there is no stream"):
                await streams.find(stream.head.id, owner)
            with pytest.raises(NotFound):
                await streams.find_by_cursor(Cursor(epoch, 0), owner)
        assert await streams.find(stream.head.id, "mine") is stream
        await over(stream)
        with pytest.raises(NotFound):
            await streams.find(stream.head.id, "other")
        await streams.find(stream.head.id, "mine")


async def test_what_is_not_to_be_kept_is_forgotten_with_its_end(tmp_path: Path) -> None:
    async with keeping(tmp_path) as streams:
        stream = streams.begin("talk", saying("Hel"), is_kept=False)
        reader = stream.reader()
        await over(stream)
        assert await streams.find(stream.head.id) is stream, "while somebody reads it, it is there"
        reader.close()
        with pytest.raises(NotFound):
            await streams.find(stream.head.id)
        assert files(tmp_path) == []


async def test_a_stream_that_the_disk_did_not_take_stays_in_memory_while_there_is_room(tmp_path: Path) -> None:
    (tmp_path / "streams").write_text("in the way")
    async with keeping(tmp_path / "streams", most=2) as streams:
        first = streams.begin("talk", saying("Hel"))
        await everything(streams, first)
        assert await everything(streams, await streams.find(first.head.id)) == [("say", "Hel")]
        second = streams.begin("talk", saying("lo"))
        await everything(streams, second)
        third = streams.begin("talk", saying("lo"))
        await until(lambda: streams.under_way == 0)
        await until(lambda: streams.in_memory == 2)
        assert {first, second} == {await streams.find(one.head.id) for one in (first, second)}
        with pytest.raises(NotFound):
            await streams.find(third.head.id)


@pytest.mark.parametrize("stream_id", ["", "..", "../x", "a/b", "x" * 5000, "\x00"])
async def test_no_id_leads_out_of_the_folder(tmp_path: Path, stream_id: str) -> None:
    (tmp_path / f"x{SUFFIX}").write_bytes(b': {"head":{"id":"x","kind":"talk","created":1}}\n\n: {"epoch":"e"}\n\n')
    async with keeping(tmp_path / "streams") as streams:
        with pytest.raises(NotFound):
            await streams.find(stream_id)


# -- retried ------------------------------------------------------------------------------------------------------------------


async def test_the_same_request_with_its_key_joins_the_first_run(tmp_path: Path) -> None:
    wait = asyncio.Event()
    async with keeping(tmp_path) as streams:
        stream = streams.begin("talk", saying(wait, "yes"), owner="me", retry_key="k", asked=b"why")
        assert await streams.begun_before("me", "k", b"why") is stream
        wait.set()
        await over(stream)
        again = await streams.begun_before("me", "k", b"why")
        assert again is not None
        assert await everything(streams, again) == [("say", "yes")]


async def test_a_key_is_good_for_one_request_of_one_owner(tmp_path: Path) -> None:
    async with keeping(tmp_path) as streams:
        streams.begin("talk", saying("yes"), owner="me", retry_key="k", asked=b"why")
        with pytest.raises(BadRequest, match="'k' was that of another request"):
            await streams.begun_before("me", "k", b"what else")
        assert await streams.begun_before("you", "k", b"why") is None
        assert await streams.begun_before("me", "", b"why") is None


async def test_what_failed_is_done_again_though_somebody_still_reads_how(tmp_path: Path) -> None:
    async with keeping(tmp_path) as streams:
        stream = streams.begin("talk", saying("Hel", ModelError("it broke")), retry_key="k", asked=b"why")
        reader = stream.reader()
        await over(stream)
        assert await streams.begun_before("", "k", b"why") is None
        reader.close()
        await let_go(streams, stream)
        assert await streams.begun_before("", "k", b"why") is None


async def test_a_key_is_remembered_by_the_next_gateway(tmp_path: Path) -> None:
    async with keeping(tmp_path) as streams:
        await over(streams.begin("talk", saying("yes"), retry_key="k", asked=b"why"))
    async with keeping(tmp_path) as streams:
        again = await streams.begun_before("", "k", b"why")
        assert again is not None
        assert await everything(streams, again) == [("say", "yes")]


# -- other gateways -----------------------------------------------------------------------------------------------------------


def left_by_another(folder: Path, *texts: str, torn: bytes = b"") -> Record:
    """The file of another gateway that has not ended its stream; it lives until the record is closed."""
    record = Record.create(folder, Head(id="theirs", kind="talk", created=time.time()), "e1")
    add(record, 0, *texts)
    if torn:
        os.write(record._descriptor or -1, torn)
    return record


def add(record: Record, first: int, *texts: str) -> None:
    record.write(
        [b"id: e1-%d\nevent: say\ndata: %b\n\n" % (first + at, json_line(text)) for at, text in enumerate(texts)]
    )


async def test_what_a_killed_gateway_left_is_ended_with_all_that_had_arrived(tmp_path: Path) -> None:
    left_by_another(tmp_path, "Hel", "lo", torn=b"id: e1-2\nevent: say\nda").close()
    async with keeping(tmp_path) as streams:
        stream = await streams.find_by_cursor(Cursor("e1", 0))
        assert stream.place(Cursor("e1", 0)) == 1
        assert await everything(streams, stream, since=1) == [
            ("say", "lo"),
            ("failed", [Interrupted.code, "Hello"]),
        ]
        assert stream.failed
    async with keeping(tmp_path) as streams:
        again = await streams.find("theirs")
        assert [name for name, _ in await everything(streams, again)] == ["say", "say", "failed"], "and only once"


async def test_what_a_killed_gateway_left_is_ended_before_anybody_asks(tmp_path: Path) -> None:
    record = left_by_another(tmp_path, "Hel")
    record.close()
    async with keeping(tmp_path):
        restored = load(record.path)
        assert restored is not None
        assert restored.failed


async def test_what_another_gateway_still_writes_is_followed_to_its_end(tmp_path: Path) -> None:
    record = left_by_another(tmp_path, "Hel")
    async with keeping(tmp_path) as streams:
        stream = await streams.find("theirs")
        reader = stream.reader()
        assert stream.ended is None
        assert not streams.cancel(stream), "it is not ours to cancel"
        add(record, 1, "lo")
        await until(lambda: stream.visible == 2)
        record.end(2000.0, failed=False)
        assert await rest_of(streams, reader) == [("say", "Hel"), ("say", "lo")]
        assert (stream.ended, stream.failed) == (2000.0, False)
        reader.close()


async def test_where_another_gateway_dies_while_it_is_followed_its_stream_is_ended_in_its_place(
    tmp_path: Path,
) -> None:
    record = left_by_another(tmp_path, "Hel")
    async with keeping(tmp_path) as streams:
        reader = (await streams.find("theirs")).reader()
        record.close()
        assert await rest_of(streams, reader) == [("say", "Hel"), ("failed", [Interrupted.code, "Hel"])]
        reader.close()
    restored = load(record.path)
    assert restored is not None
    assert restored.failed


@pytest.mark.parametrize("by_cursor", [False, True])
async def test_a_stream_that_another_gateway_began_after_our_start_is_found(tmp_path: Path, by_cursor: bool) -> None:
    async with keeping(tmp_path) as streams:
        record = left_by_another(tmp_path, "Hel")
        stream = await (streams.find_by_cursor(Cursor("e1", 0)) if by_cursor else streams.find("theirs"))
        assert stream.head.id == "theirs"
        record.end(2000.0, failed=False)
        await over(stream)


async def test_two_gateways_on_one_folder_end_a_dead_ones_stream_once(tmp_path: Path) -> None:
    left_by_another(tmp_path, "Hel").close()
    async with keeping(tmp_path) as one, keeping(tmp_path) as other:
        told = [await everything(streams, await streams.find("theirs")) for streams in (one, other)]
    assert told[0] == told[1] == [("say", "Hel"), ("failed", [Interrupted.code, "Hel"])]


async def test_a_file_that_vanishes_ends_what_followed_it(tmp_path: Path) -> None:
    record = left_by_another(tmp_path, "Hel")
    async with keeping(tmp_path) as streams:
        stream = await streams.find("theirs")
        record.path.unlink()
        await let_go(streams, stream)
        assert stream.failed
        with pytest.raises(NotFound):
            await streams.find("theirs")
    record.close()


@pytest.mark.parametrize("junk", [b"", b"\n\n", b": {}\n\n", b": \xff\n\n", b"\x00" * 100, b": {" * 10_000 + b"\n\n"])
async def test_a_file_that_is_none_of_ours_stops_nobody(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / f"junk{SUFFIX}").write_bytes(junk)
    async with keeping(tmp_path) as streams:
        with pytest.raises(NotFound):
            await streams.find("junk")


# -- removed ------------------------------------------------------------------------------------------------------------------


async def test_an_hour_after_its_end_a_stream_is_gone(tmp_path: Path) -> None:
    async with keeping(tmp_path) as streams:
        stream = streams.begin("talk", saying("Hel"), retry_key="k", asked=b"why")
        [epoch] = stream.epochs
        await let_go(streams, stream)
        assert stream.ended is not None
        await streams._reap(stream.ended)
        await streams.find(stream.head.id)
        await streams._reap(stream.ended + 0.001)
        with pytest.raises(NotFound):
            await streams.find(stream.head.id)
        with pytest.raises(NotFound):
            await streams.find_by_cursor(Cursor(epoch, 0))
        assert await streams.begun_before("", "k", b"why") is None
        assert files(tmp_path) == []


async def test_what_is_under_way_or_read_is_not_removed(tmp_path: Path) -> None:
    wait = asyncio.Event()
    async with keeping(tmp_path) as streams:
        done = streams.begin("talk", saying("Hel"))
        await let_go(streams, done)
        live, again = streams.begin("talk", saying("Hel", wait)), await streams.find(done.head.id)
        reader = again.reader()
        await streams._reap(time.time() + 10 * KEPT_FOR)
        assert await streams.find(live.head.id) is live
        assert await streams.find(done.head.id) is again
        assert files(tmp_path) == sorted([done.head.id, live.head.id])
        reader.close()
        wait.set()
        await over(live)


async def test_what_another_gateway_left_long_ago_is_removed_without_being_asked_for(tmp_path: Path) -> None:
    async with keeping(tmp_path) as streams:
        left_by_another(tmp_path, "Hel").end(1.0, failed=False)
        path = tmp_path / f"theirs{SUFFIX}"
        past = time.time() - KEPT_FOR - 10
        os.utime(path, (past, past))
        await streams._reap(time.time() - KEPT_FOR)
        assert files(tmp_path) == []
