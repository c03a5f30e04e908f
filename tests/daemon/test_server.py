"""All connections of a process: how many there may be, how accepting goes on, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path
from typing import Any

import anyio
import pytest
from scripted import EchoBackend, ScriptedBackend
from serving import Client, Json, Served, serving, until

from daemon import conversation, server

PING: Json = {"type": "ping"}
CHAT: Json = {"type": "chat", "request_id": "r1", "content": "Why?"}


async def spoken(served: Served, count: int) -> list[Client]:
    clients = []
    for _ in range(count):
        client = await served.connect()
        assert (await client.ask(PING))["type"] == "pong"
        clients.append(client)
    return clients


# -- how many -------------------------------------------------------------------------------------------------------------


async def test_over_the_limit_the_longest_silent_connection_goes_first(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path, connections=3) as served:
        with anyio.fail_after(5):
            await spoken(served, 1)
            first, second = await served.connect(), await served.connect()
            await until(lambda: served.specialist.clients == 3)
            newest = await served.connect()
            assert await first.rest() == b""
            assert (await newest.ask(CHAT))["content"] == "x"
            assert (await second.ask(CHAT))["content"] == "x"


async def test_where_all_have_spoken_four_more_may_only_ask_how_we_are(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    async with serving(backend, tmp_path, connections=3) as served:
        with anyio.fail_after(5):
            await spoken(served, 3)
            kept = await spoken(served, 4)
            one_more = await served.connect()
            assert await one_more.rest() == b""
            assert (await kept[0].ask({"type": "health"}))["clients"] == 7
            assert (await kept[0].ask(CHAT))["code"] == "busy"
            assert await kept[0].rest() == b""
            kept[1].send(b"hello\n")
            assert (await kept[1].rest()).startswith(b"error: 3 connections are open")
    assert backend.prompts == []


async def test_a_place_that_was_given_back_is_a_whole_one(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path, connections=2) as served:
        with anyio.fail_after(5):
            first, _ = await spoken(served, 2)
            await first.close()
            await until(lambda: served.specialist.clients == 1)
            assert (await (await served.connect()).ask(CHAT))["content"] == "x"


@pytest.mark.parametrize("limit", [1, 5, 100])
async def test_a_burst_stays_within_the_limit(tmp_path: Path, limit: int) -> None:
    """All of them wait in the backlog when the first is accepted."""
    most = 0
    async with serving(ScriptedBackend("x"), tmp_path, connections=limit) as served:
        burst = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(300)]
        with anyio.fail_after(5):
            for _ in range(30):
                await anyio.lowlevel.checkpoint()
                most = max(most, len(served.server._conversations))
        for one in burst:
            one.close()
    assert limit <= most <= limit + server.KEPT_PLACES


async def test_a_burst_over_silent_connections_drives_out_as_many(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path, connections=50) as served:
        with anyio.fail_after(5):
            for _ in range(50):
                await served.connect()
            await until(lambda: served.specialist.clients == 50)
            burst = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(40)]
            most = 0
            for _ in range(30):
                await anyio.lowlevel.checkpoint()
                most = max(most, len(served.server._conversations))
        for one in burst:
            one.close()
    assert most == 50


# -- accepting ------------------------------------------------------------------------------------------------------------


class Failing(socket.socket):
    """A listening socket whose accept fails with the errors it is given, one after the other."""

    errors: list[int]

    def accept(self) -> Any:
        if self.errors:
            number = self.errors.pop()
            raise OSError(number, errno.errorcode[number])
        return super().accept()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPROTO, errno.ENETDOWN])
async def test_an_accept_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    monkeypatch.setattr(server, "RETRY_ACCEPT_AFTER", 0.001)
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        with socket.create_server(("127.0.0.1", 0)) as bound:
            listener = Failing(fileno=bound.detach())
        listener.errors = [number] * 3
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener, served.server._accept, listener)
        other = Client(*await asyncio.open_connection(*listener.getsockname()))
        served.clients.append(other)
        with anyio.fail_after(5):
            assert (await other.ask(PING))["type"] == "pong"
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()
    assert caplog.text.count("cannot accept a connection") == 3


async def test_a_connection_that_is_lost_while_it_is_accepted_is_a_log_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:

        async def lost(*_: object) -> None:
            raise ConnectionResetError(104, "Connection reset by peer")

        with monkeypatch.context() as broken:
            broken.setattr(asyncio.get_running_loop(), "connect_accepted_socket", lost)
            client = await served.connect()
            with anyio.fail_after(5):
                assert await client.rest() == b""
        with anyio.fail_after(5):
            await spoken(served, 1)
    assert "lost while it was accepted" in caplog.text


# -- the end --------------------------------------------------------------------------------------------------------------


async def test_resting_connections_are_closed_at_the_stop(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path, grace=60.0) as served:
        with anyio.fail_after(5):
            silent = await served.connect()
            person, program = await spoken(served, 2)
            program.send(CHAT)
            await program.reply()
            served.stop.set()
            assert [await client.rest() for client in (silent, person, program)] == [b""] * 3
            await silent.close()
            await person.close()
            await served.ended.wait()


async def test_nobody_is_accepted_after_the_stop(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(asyncio.Event()), tmp_path) as served:
        client = await served.connect()
        client.send(CHAT)
        with anyio.fail_after(5):
            await until(lambda: served.specialist.in_flight)
            served.stop.set()
            await until(lambda: served.server.stopping)
            with pytest.raises(ConnectionRefusedError):
                await served.connect()


async def test_what_is_under_way_is_finished_and_what_comes_later_refused(tmp_path: Path) -> None:
    go = asyncio.Event()
    async with serving(ScriptedBackend("Hel", go, "lo"), tmp_path, grace=60.0) as served:
        client = await served.connect()
        client.send({**CHAT, "stream": True}, {"content": "now"}, {"content": "in turn"})
        with anyio.fail_after(5):
            await until(lambda: served.specialist.queued)
            served.stop.set()
            await until(lambda: served.server.stopping)
            client.send({**CHAT, "request_id": "r2"}, {"type": "health", "request_id": "h"})
            health, refused = (await client.until("error"))[-2:]
            assert (health["status"], refused["code"]) == ("draining", "draining")
            go.set()
            replies = await client.replies()
            await served.ended.wait()
    assert [reply["content"] for reply in replies if reply["type"] == "stream_end"] == ["Hello"]
    assert [reply["content"] for reply in replies if reply["type"] == "chat_response"] == ["Hello"]
    assert [reply["code"] for reply in replies if reply["type"] == "error"] == ["draining"]  # its turn came too late


@pytest.mark.parametrize("stream", [True, False])
async def test_after_the_grace_what_had_arrived_is_told(tmp_path: Path, stream: bool) -> None:
    async with serving(ScriptedBackend("Hel", asyncio.Event()), tmp_path, grace=0.05) as served:
        client, person = await served.connect(), await served.connect()
        client.send({**CHAT, "stream": stream})
        person.send(b"Why?\n")
        with anyio.fail_after(5):
            assert await person.reader.readexactly(3) == b"Hel"
            served.stop.set()
            last = (await client.replies())[-1]
            assert (await person.rest()).startswith(b"\nerror: apollo stopped before the answer was whole")
            await person.close()
            await served.ended.wait()
    assert (last["type"], last["code"], last["partial"]) == ("stream_error" if stream else "error", "draining", "Hel")
    assert last["retry_after"] > 0


@pytest.mark.parametrize("early", [True, False])
async def test_the_grace_can_be_ended(tmp_path: Path, early: bool) -> None:
    async with serving(ScriptedBackend("Hel", asyncio.Event()), tmp_path, grace=60.0) as served:
        client = await served.connect()
        client.send({**CHAT, "stream": True})
        with anyio.fail_after(5):
            await until(lambda: served.specialist.in_flight)
            served.stop.set()
            if not early:
                await until(lambda: served.server.stopping)
            served.server.end_grace()
            assert (await client.replies())[-1]["code"] == "draining"
            await served.ended.wait()


@pytest.mark.parametrize("question", [{"type": "ping"}, CHAT])
async def test_whoever_was_accepted_just_before_the_stop_still_has_its_first_words(
    tmp_path: Path, question: Json
) -> None:
    async with serving(ScriptedBackend("x"), tmp_path, grace=5.0) as served:
        client = await served.connect()
        await until(lambda: served.specialist.clients == 1)
        served.stop.set()
        with anyio.fail_after(5):
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            client.send(question)
            assert (await client.reply())["type"] in ("pong", "chat_response")
            await served.ended.wait()


async def test_a_stop_that_is_patient_has_no_end_of_its_own(tmp_path: Path) -> None:
    go = asyncio.Event()
    async with serving(ScriptedBackend("Hel", go, "lo"), tmp_path, grace=0.0) as served:
        client = await served.connect()
        client.send({**CHAT, "stream": True})
        with anyio.fail_after(5):
            await until(lambda: served.specialist.in_flight)
            served.server.be_patient()
            served.stop.set()
            await until(lambda: served.server.stopping)
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            go.set()
            assert (await client.replies())[-1]["content"] == "Hello"
            await served.ended.wait()


@pytest.mark.parametrize("turns", range(6))
async def test_whoever_asked_just_before_the_stop_is_answered(tmp_path: Path, turns: int) -> None:
    """However far accepting and reading had come."""
    async with serving(ScriptedBackend("x"), tmp_path, grace=5.0) as served:
        old = (await spoken(served, 1))[0]
        new = socket.create_connection(("127.0.0.1", served.port))
        await anyio.lowlevel.checkpoint()
        new.send(b'{"content": "x", "request_id": 1}\n')
        old.socket._sock.send(b'{"content": "x", "request_id": 1}\n')
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        served.stop.set()
        with anyio.fail_after(5):
            [reply] = await old.replies()
            await served.ended.wait()
        new.setblocking(False)
        try:
            heard = new.recv(65536)
        except ConnectionResetError:
            heard = b""
        new.close()
    assert reply.get("code") in (None, "draining")
    assert turns < 2 or heard.startswith((b'{"type":"chat_response"', b'{"type":"error"'))


async def test_a_connection_that_was_reset_unnoticed_does_not_break_the_stop(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path, grace=5.0) as served:
        with anyio.fail_after(5):
            client, other = await spoken(served, 2)
            served.stop.set()
            await until(lambda: served.specialist.draining)
            client.abandon()
            client.socket._sock.close()
            assert await other.rest() == b""
            await other.close()
            await served.ended.wait()


async def test_a_stop_before_the_start_is_a_start_and_a_stop(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        served.stop.set()
        with anyio.fail_after(5):
            await served.ended.wait()


async def test_a_client_that_does_not_read_cannot_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "LAST_WORDS", 60.0)
    async with serving(ScriptedBackend("x" * 7_000_000), tmp_path, grace=0.05) as served:
        client = await served.connect()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        client.send({**CHAT, "stream": True})
        with anyio.fail_after(5):
            await until(served.server.ledger.total)
            served.stop.set()
            await served.ended.wait()


async def test_nothing_is_left_in_the_loop_after_the_end(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    async with serving(EchoBackend(), tmp_path) as served:
        for number in range(10):
            client = await served.connect()
            client.send({**CHAT, "stream": True, "content": "a b c"}, b"text\n"[: number % 6])
    with anyio.fail_after(5):
        await until(lambda: asyncio.all_tasks() == before)
