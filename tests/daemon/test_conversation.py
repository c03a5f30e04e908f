"""One connection: lines and their limit, end of input, who may speak, floods, and failures of one conversation."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import anyio
import pytest
from scripted import EchoBackend, ScriptedBackend
from serving import Json, serving, until

from daemon import conversation
from daemon.conversation import Conversation
from protocol import peer

CHAT: Json = {"type": "chat", "request_id": "r1", "content": "Why?"}
PING: Json = {"type": "ping"}


# -- framing ------------------------------------------------------------------------------------------------------------


async def test_a_line_may_come_byte_by_byte(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(), tmp_path) as served:
        client = await served.connect()
        for byte in b'{"type": "ping"}\r\n':
            client.send(bytes([byte]))
            await anyio.lowlevel.checkpoint()
        with anyio.fail_after(5):
            assert (await client.reply())["type"] == "pong"


async def test_blank_lines_and_carriage_returns_are_nothing(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(), tmp_path) as served:
        client = await served.connect()
        client.send(b'\r\n\n  \n{"type": "ping"}\r\n\n  {"type": "ping"}\n')
        client.end()
        with anyio.fail_after(5):
            assert [reply["type"] for reply in await client.replies()] == ["pong", "pong"]


async def test_a_last_line_without_its_end_counts(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        client.send(b'{"content": "Why?"}')
        client.end()
        with anyio.fail_after(5):
            [reply] = await client.replies()
    assert reply["content"] == "x"


async def test_a_line_of_exactly_the_limit_is_taken(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path, max_line_bytes=1024) as served:
        client = await served.connect()
        line = b'{"content": "%s"}' % (b"x" * (1024 - 15))
        assert len(line) == 1024
        with anyio.fail_after(5):
            assert (await client.ask(line + b"\r\n"))["type"] == "chat_response"
            assert (await client.ask(line[:-2] + b'x"}\n'))["code"] == "line_too_long"


@pytest.mark.parametrize("start", [b'{"content": "', b"x"], ids=["json", "plain"])
async def test_a_line_over_the_limit_is_refused_and_the_connection_goes_on(tmp_path: Path, start: bytes) -> None:
    async with serving(ScriptedBackend("x"), tmp_path, max_line_bytes=1024) as served:
        client = await served.connect()
        client.send(start + b"y" * 5000)
        with anyio.fail_after(5):
            error = await client.text()
            assert (await client.ask(b'yy"}\n{"type": "ping"}\n'))["type"] == "pong"
    assert error.startswith('{"type":"error"' if start != b"x" else "error: the line is longer than 1024 bytes")


async def test_an_answer_may_be_longer_than_a_line(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x" * 100_000), tmp_path, max_line_bytes=1024) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            assert len((await client.ask(CHAT))["content"]) == 100_000


async def test_a_line_that_is_too_long_is_refused_in_its_turn(tmp_path: Path) -> None:
    go = asyncio.Event()
    async with serving(ScriptedBackend("x", go), tmp_path, max_line_bytes=1024) as served:
        client = await served.connect()
        client.send({"content": "a"}, b"{" + b"y" * 5000 + b"\n", PING)
        with anyio.fail_after(5):
            await client.until("pong")
            go.set()
            assert [(await client.reply())["type"] for _ in range(2)] == ["chat_response", "error"]


# -- end of input -------------------------------------------------------------------------------------------------------


async def test_everything_received_is_answered_after_the_end_of_input(tmp_path: Path) -> None:
    backend = ScriptedBackend("Hel", "lo")
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send({**CHAT, "stream": True}, {"content": "b"}, {"content": "c"})
        client.end()
        with anyio.fail_after(5):
            replies = await client.replies()
    assert [reply["content"] for reply in replies if "response" in reply] == ["Hello"] * 3
    assert backend.cut_short == 0


async def test_a_living_client_that_half_closed_is_not_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "PEER_CHECK", 0.001)
    looks = 0
    ask = peer.ask

    def counted(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        return ask(*args)

    monkeypatch.setattr(peer, "ask", counted)
    go = asyncio.Event()
    async with serving(ScriptedBackend(go, "x"), tmp_path) as served:
        client = await served.connect()
        client.send(CHAT)
        client.end()
        with anyio.fail_after(5):
            await until(lambda: looks > 10)
            go.set()
            assert (await client.reply())["content"] == "x"


@pytest.mark.parametrize("before", [[], ["Hel"]], ids=["before the first token", "in the middle"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_closed_is_cancelled(tmp_path: Path, before: list[str], stream: bool) -> None:
    backend = ScriptedBackend(*before, asyncio.Event())
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send({**CHAT, "stream": stream})
        with anyio.fail_after(5):
            await until(lambda: backend.under_way)
            await client.close()
            await until(lambda: backend.cut_short)


async def test_a_client_that_is_reset_is_cancelled(tmp_path: Path) -> None:
    backend = ScriptedBackend(asyncio.Event())
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send(CHAT)
        with anyio.fail_after(5):
            await until(lambda: backend.under_way)
            client.abandon()
            await until(lambda: backend.cut_short)


async def test_a_client_that_half_closed_and_then_left_is_cancelled(tmp_path: Path) -> None:
    backend = ScriptedBackend(asyncio.Event())
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send(CHAT)
        client.end()
        with anyio.fail_after(5):
            await until(lambda: backend.under_way)
            await client.close()
            await until(lambda: backend.cut_short)


async def test_what_waits_for_its_turn_never_starts_for_a_client_that_left(tmp_path: Path) -> None:
    backend = ScriptedBackend(asyncio.Event())
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send({"content": "a"}, {"content": "b"})
        with anyio.fail_after(5):
            await until(lambda: served.specialist.queued)
            await client.close()
            await until(lambda: backend.cut_short and not served.specialist.in_flight)
    assert backend.questions == ["a"]


# -- who may speak --------------------------------------------------------------------------------------------------------


async def test_another_user_is_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "ask", lambda *_: peer.Owner(4242))
    backend = ScriptedBackend("x")
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send(CHAT, CHAT)
        with anyio.fail_after(5):
            [reply] = await client.replies()
    assert (reply["code"], backend.prompts) == ("forbidden", [])
    assert "4242" in reply["error"]


async def test_another_user_who_writes_text_is_told_in_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "ask", lambda *_: peer.Owner(4242))
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        client.send(b"hello\n")
        with anyio.fail_after(5):
            assert (await client.rest()).startswith(b"error: user 4242")


@pytest.mark.parametrize("user", [4242, 0, os.getuid()])
async def test_our_own_user_root_and_those_named_may_speak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int
) -> None:
    monkeypatch.setattr(peer, "ask", lambda *_: peer.Owner(user))
    async with serving(ScriptedBackend("x"), tmp_path, allowed_uids=[4242]) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            assert (await client.ask(PING))["type"] == "pong"


async def test_whoever_asked_and_left_reaches_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "ask", lambda *_: peer.Gone())
    backend = ScriptedBackend("x")
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send(CHAT)
        with anyio.fail_after(5):
            assert await client.rest() == b""
    assert backend.prompts == []


async def test_where_the_system_does_not_say_everybody_may_speak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "ask", lambda *_: peer.Untold())
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        client.send(CHAT)
        client.end()
        with anyio.fail_after(5):
            assert (await client.reply())["content"] == "x"


async def test_a_specialist_answers_on_both_loopback_addresses(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect("::1")
        with anyio.fail_after(5):
            assert (await client.ask(PING))["type"] == "pong"


# -- floods and failures ----------------------------------------------------------------------------------------------------


async def test_a_client_that_asks_and_never_reads_is_not_read_from_either(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(), tmp_path) as served:
        client = await served.connect()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        client.send(*[{"type": "info"}] * 60_000)
        with anyio.fail_after(5):
            await until(lambda: any(one._paused for one in served.server._conversations))
        [ours] = served.server._conversations
        assert ours.unsent() < 2 * conversation.FLOOD


async def test_a_flood_is_answered_to_the_last_line_when_it_is_read_after_all(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(), tmp_path) as served:
        client = await served.connect()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        client.send(*[{"type": "info"}] * 20_000)
        client.end()
        with anyio.fail_after(20):
            await until(lambda: any(one._paused for one in served.server._conversations))
            client.reader._transport.resume_reading()  # type: ignore[attr-defined]
            assert len((await client.rest()).splitlines()) == 20_000


async def test_a_conversation_that_fails_is_a_log_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Conversation, line: bytes) -> None:
        raise ValueError("oops")

    monkeypatch.setattr(Conversation, "_json", fail)
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client, neighbour = await served.connect(), await served.connect()
        client.send(PING)
        with anyio.fail_after(5), caplog.at_level(logging.ERROR):
            [reply] = await client.replies()
            neighbour.send(b"hello\n")
            assert await neighbour.text() == "x"
    assert reply["code"] == "internal"
    assert reply["error"].rsplit(" ", 1)[1] in caplog.text
    assert "oops" in caplog.text


async def test_a_connection_that_was_reset_unnoticed_can_be_finished(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            await client.ask(PING)
            [ours] = served.server._conversations
            client.abandon()
            client.socket._sock.close()  # now, not in the next turn of the loop, in which we would hear of it
            ours.finish()
            ours.finish()
            await until(lambda: not served.server._conversations)


async def test_health_tells_how_much_waits_for_slow_readers(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x" * 20_000_000), tmp_path, max_reply_bytes=30_000_000) as served:
        slow, other = await served.connect(), await served.connect()
        slow.reader._transport.pause_reading()  # type: ignore[attr-defined]
        slow.send(CHAT)
        with anyio.fail_after(5):
            await until(served.server.ledger.total)
            assert (await other.ask({"type": "health"}))["buffered_bytes"] > 1_000_000


async def test_an_exception_in_the_loop_is_never_left_to_asyncio(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    async with serving(EchoBackend(), tmp_path, connections=4) as served:
        for turn in range(60):
            client = await served.connect()
            client.send({**CHAT, "stream": True, "content": "a b c"}, b"text\n", PING)
            for _ in range(turn):
                await anyio.lowlevel.checkpoint()
            (client.end, client.abandon, client.writer.transport.abort)[turn % 3]()
    assert heard == []
