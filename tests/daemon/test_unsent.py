"""Readers that do not read: their time, and how much all of them may hold together."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import pytest
from scripted import ScriptedBackend
from serving import Client, Json, serving, until

from daemon import unsent
from daemon.unsent import Ledger

MANY = ["x" * 100_000] * 300
STREAM: Json = {"content": "Why?", "request_id": 1, "stream": True}
LARGE = 2_000_000_000


class Stuck:
    """A reader by itself: what it was given, what it took, and why it was cut off."""

    def __init__(self, given: int = 0, taken: int = 0) -> None:
        self.given = given
        self.taken = taken
        self.reason = ""

    def unsent(self) -> int:
        return 0 if self.reason else self.given - self.taken

    def held(self) -> int:
        return self.unsent()

    def written(self) -> int:
        return self.given

    def cut_off(self, reason: str) -> None:
        self.reason = reason


def deaf(client: Client) -> None:
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]


async def test_a_reader_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsent, "CHECK_EVERY", 0.001)
    ledger, reader = Ledger(0.02, LARGE), Stuck(given=100)
    ledger.slow(reader)
    with anyio.fail_after(5):
        await until(lambda: reader.reason)
    assert "took nothing for 0.02 s" in reader.reason


async def test_a_slow_reader_that_does_read_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsent, "CHECK_EVERY", 0.001)
    ledger, slow, stuck = Ledger(0.1, LARGE), Stuck(given=LARGE), Stuck(given=100)
    ledger.slow(slow)
    ledger.slow(stuck)

    def reads() -> bool:
        slow.taken += 1
        return bool(stuck.reason)

    with anyio.fail_after(5):
        await until(reads)
    assert not slow.reason


async def test_the_reader_that_is_stuck_longest_makes_room() -> None:
    ledger = Ledger(60.0, 1000)
    readers = [Stuck(given=400), Stuck(given=300), Stuck(given=200)]
    for reader in readers:
        ledger.slow(reader)
        await anyio.lowlevel.checkpoint()
    readers[2].given += 200
    ledger.wrote(200)
    assert [bool(reader.reason) for reader in readers] == [True, False, False]
    ledger.caught_up(readers[0])
    assert ledger.total() == 700
    for reader in readers:
        ledger.caught_up(reader)


async def test_nothing_ticks_where_nobody_is_slow() -> None:
    ledger, reader = Ledger(60.0, 1000), Stuck(given=400)
    ledger.slow(reader)
    assert ledger._timer is not None
    ledger.caught_up(reader)
    ledger.caught_up(reader)
    assert ledger._timer is None


# -- over the wire --------------------------------------------------------------------------------------------------------


async def test_a_client_that_never_reads_is_disconnected_and_its_answer_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsent, "CHECK_EVERY", 0.01)
    backend = ScriptedBackend(*MANY, asyncio.Event())
    async with serving(backend, tmp_path, write_timeout=0.1, max_reply_bytes=LARGE) as served:
        client = await served.connect()
        deaf(client)
        client.send(STREAM)
        with anyio.fail_after(5):
            await until(lambda: backend.cut_short)
            await until(lambda: not served.server._conversations)
    assert served.server.ledger.total() == 0


async def test_what_is_left_to_a_closing_reader_has_its_time_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little it is: a few bytes that nobody takes would hold the connection for ever."""
    monkeypatch.setattr(unsent, "CHECK_EVERY", 0.01)
    async with serving(ScriptedBackend("x"), tmp_path, write_timeout=1.0) as served:
        client = await served.connect()
        deaf(client)
        with anyio.fail_after(5):
            await until(lambda: served.server._conversations)
            [ours] = served.server._conversations
            loop, taken, since = asyncio.get_running_loop(), 0, 0.0
            while not ours.unsent() or loop.time() - since < 0.2:  # until the kernel takes nothing more
                if not ours.unsent():
                    ours.write(b"x" * 30_000)
                if taken != (taken := ours.written() - ours.unsent()):
                    since = loop.time()
                await anyio.lowlevel.checkpoint()
            assert ours.unsent() <= 65536
            ours.finish()
            await until(lambda: not served.server._conversations)


async def test_the_model_server_is_read_at_full_speed_whoever_reads_us(tmp_path: Path) -> None:
    backend = ScriptedBackend(*MANY)
    async with serving(backend, tmp_path, max_reply_bytes=LARGE) as served:
        client = await served.connect()
        deaf(client)
        client.send(STREAM)
        with anyio.fail_after(5):
            await until(lambda: backend.prompts and not backend.under_way)
        assert not backend.cut_short
        assert served.server.ledger.total() > 1_000_000


async def test_a_slow_client_gets_every_byte_in_the_end(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(*MANY), tmp_path, max_reply_bytes=LARGE) as served:
        client = await served.connect()
        deaf(client)
        client.send({**STREAM, "final": "short"})
        client.end()
        with anyio.fail_after(20):
            await until(lambda: served.specialist.in_flight == 0 and served.server.ledger.total())
            client.reader._transport.resume_reading()  # type: ignore[attr-defined]
            replies = await client.replies()
    chunks = [reply["chunk_index"] for reply in replies if reply["type"] == "stream_chunk"]
    assert chunks == list(range(300))


async def test_all_unsent_bytes_together_stay_under_the_limit_and_neighbours_live(tmp_path: Path) -> None:
    backend = ScriptedBackend(answer=lambda prompt: MANY if prompt.turns[-1].content == "Why?" else ["x"])
    most = 0
    async with serving(backend, tmp_path, max_buffered_bytes=20_000_000, max_reply_bytes=LARGE) as served:
        neighbour = await served.connect()
        for _ in range(8):
            client = await served.connect()
            deaf(client)
            client.send(STREAM)
        with anyio.fail_after(20):
            await until(lambda: backend.prompts)
            while backend.under_way:
                most = max(most, served.server.ledger.total())
                await anyio.lowlevel.checkpoint()
            assert (await neighbour.ask({"content": "hi"}))["content"] == "x"
    assert 10_000_000 < most <= 20_000_000


async def test_a_reader_at_a_walk_is_not_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells of room only in large steps; small reads must count all the same."""
    monkeypatch.setattr(unsent, "CHECK_EVERY", 0.01)
    async with serving(ScriptedBackend(*MANY), tmp_path, write_timeout=1.0, max_reply_bytes=LARGE) as served:
        client = await served.connect()
        deaf(client)
        client.send({**STREAM, "final": "short"})
        loop = asyncio.get_running_loop()
        with anyio.fail_after(10):
            await until(served.server.ledger.total)
            began, taken = loop.time(), 0
            while (passed := loop.time() - began) < 3.0:
                if taken < 800_000 * passed:
                    taken += len(client.socket._sock.recv(8192))
                await anyio.lowlevel.checkpoint()
        assert served.server._conversations


async def test_the_text_of_an_unread_answer_counts_beside_its_unsent_bytes() -> None:
    class Growing(Stuck):
        def held(self) -> int:
            return 2 * self.unsent()

    ledger, reader = Ledger(60, 150), Growing(given=100)
    ledger.slow(reader)
    ledger.wrote(1)
    assert "max_buffered_bytes" in reader.reason
