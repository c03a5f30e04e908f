"""When a connection is closed, and that nothing is lost by it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import pytest
from scripted import ScriptedBackend
from serving import Client, Json, serving, until

from daemon import conversation
from daemon.conversation import Kind

CHAT: Json = {"type": "chat", "content": "Why?"}
PIPED: list[tuple[Any, Kind]] = [
    (b"Why?\n", Kind.PLAIN),
    (b"{bad\n", Kind.PLAIN),
    (b"x" * 2000, Kind.PLAIN),
    ({"content": "Why?"}, Kind.UNTYPED),
    ({"nothing": 1}, Kind.UNTYPED),
    (CHAT, Kind.TYPED),
    ({"type": "nonsense"}, Kind.TYPED),
    ({"type": "ping"}, Kind.TYPED),
]
PROGRAMS = [{**CHAT, "request_id": "r"}, {"type": "ping", "request_id": 0}, {"type": "nonsense", "request_id": "r"}]


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wait of every kind is as good as over; a kind that is to be waited for gets its time back."""
    for kind in (Kind.PLAIN, Kind.UNTYPED, Kind.TYPED):
        monkeypatch.setattr(kind, "_value_", 60.0)
    monkeypatch.setattr(conversation, "PIPED_WITHIN", 60.0)


def test_the_waits_are_those_of_the_contract() -> None:
    assert (Kind.PLAIN.value, Kind.UNTYPED.value, Kind.TYPED.value, Kind.PROGRAM.value) == (1.0, 5.0, 30.0, None)
    assert (conversation.PIPED_WITHIN, conversation.SILENT_LIMIT, conversation.IDLE_LIMIT) == (0.5, 60.0, 600.0)
    assert (conversation.PEER_CHECK, conversation.LAST_WORDS) == (0.5, 1.0)


@pytest.mark.parametrize(("message", "kind"), PIPED)
async def test_a_piped_message_of_each_kind_is_answered_and_then_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_patience: None, message: Any, kind: Kind
) -> None:
    monkeypatch.setattr(kind, "_value_", 0.01)  # of this kind alone: the others would hang for a minute
    async with serving(ScriptedBackend("x"), tmp_path, max_line_bytes=1024) as served:
        client = await served.connect()
        client.send(message)
        with anyio.fail_after(5):
            assert (await client.rest()).count(b"\n") == 1


@pytest.mark.parametrize("message", PROGRAMS)
async def test_a_program_keeps_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Json) -> None:
    for name in ("SILENT_LIMIT", "IDLE_LIMIT"):
        monkeypatch.setattr(conversation, name, 0.001)
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            await client.ask(message)
            [ours] = served.server._conversations
            assert ours._rest_timer is None
            assert (await client.ask(message))["request_id"] == message["request_id"]


@pytest.mark.parametrize("message", [{**CHAT, "request_id": 1}, {"type": "ping"}, CHAT, {"type": "history"}])
async def test_close_is_at_once_after_the_answer(tmp_path: Path, message: Json) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        client.send({**message, "close": True})
        with anyio.fail_after(0.5):
            assert len(await client.replies()) == 1


async def test_close_waits_for_all_answers(tmp_path: Path) -> None:
    go = asyncio.Event()
    async with serving(ScriptedBackend(go, "x"), tmp_path) as served:
        client = await served.connect()
        client.send({**CHAT, "request_id": 1}, {**CHAT, "request_id": 2, "close": True}, {"type": "ping"})
        with anyio.fail_after(5):
            await client.until("pong")
            go.set()
            assert sorted(reply["request_id"] for reply in await client.replies()) == [1, 2]


async def test_a_second_question_makes_the_wait_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_patience: None
) -> None:
    monkeypatch.setattr(Kind.PLAIN, "_value_", 0.3)
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            for _ in range(4):
                client.send(b"Why?\n")
                assert await client.text() == "x"
            assert await client.rest() == b""


async def test_nothing_is_closed_while_an_answer_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_patience: None
) -> None:
    monkeypatch.setattr(Kind.PLAIN, "_value_", 0.001)
    go = asyncio.Event()
    async with serving(ScriptedBackend("a", go, "b"), tmp_path) as served:
        client = await served.connect()
        client.send(b"Why?\n")
        with anyio.fail_after(5):
            await client.reader.readexactly(1)
            asyncio.get_running_loop().call_later(0.05, go.set)
            assert await client.rest() == b"b\n"


async def test_a_paste_that_began_at_once_is_piped_however_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "PIPED_WITHIN", 0.04)  # less than the pause that ends a paste
    monkeypatch.setattr(Kind.PLAIN, "_value_", 0.001)
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        client.send(b"Why?\n")
        with anyio.fail_after(5):
            assert await client.rest() == b"x\n"


async def test_a_person_keeps_the_connection_until_the_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "PIPED_WITHIN", -1.0)
    monkeypatch.setattr(conversation, "IDLE_LIMIT", 0.05)
    monkeypatch.setattr(Kind.PLAIN, "_value_", 0.0)
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        client.send(b"Why?\n")
        with anyio.fail_after(5):
            assert await client.rest() == b"x\n[closed after 10 minutes without a question]\n"


async def test_a_connection_that_says_nothing_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "SILENT_LIMIT", 0.01)
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            assert await client.rest() == b""


@pytest.mark.parametrize(("start", "told"), [(b"Why", b"error: a message ends"), (b'{"con', b'{"type":"error"')])
async def test_half_a_line_is_told_so_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes, told: bytes
) -> None:
    monkeypatch.setattr(conversation, "SILENT_LIMIT", 0.05)
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        client.send(start)
        with anyio.fail_after(5):
            assert (await client.rest()).startswith(told)


async def test_an_error_reaches_whoever_goes_on_sending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "LAST_WORDS", 0.2)
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        for _ in range(20):
            client = await served.connect()
            client.send(b"POST / HTTP/1.1\r\n" + b"x" * 3_000_000)
            with anyio.fail_after(5):
                assert b"400 Bad Request" in await client.rest()


async def test_our_side_is_shut_and_theirs_drained_for_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "LAST_WORDS", 0.05)
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        client.send({"type": "ping", "close": True})
        with anyio.fail_after(5):
            await client.rest()
            assert served.server._conversations  # our side is shut, theirs is not yet
            await until(lambda: not served.server._conversations)


async def test_nothing_is_written_after_our_side_was_shut(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            await client.ask({"type": "ping"})
            [ours] = served.server._conversations
            ours.finish()
            ours.write(b"late")
            ours.rest()
            ours.finish()
            assert await client.rest() == b""


async def test_a_reader_that_closed_with_an_answer_unread_is_forgotten(tmp_path: Path) -> None:
    async def ask_and_leave(client: Client) -> None:
        client.send({**CHAT, "stream": True, "close": True})
        await client.reader.readexactly(1)
        client.abandon()

    async with serving(ScriptedBackend(*["x" * 1000] * 50), tmp_path) as served:
        with anyio.fail_after(5):
            for _ in range(20):
                await ask_and_leave(await served.connect())
            await until(lambda: not served.server._conversations and not served.specialist.in_flight)


async def test_a_refused_request_that_asks_for_it_is_the_last(tmp_path: Path, no_patience: None) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        client.send({"type": "chat", "content": 42, "close": True})
        with anyio.fail_after(5):
            assert (await client.rest()).count(b"\n") == 1
