"""Real processes: signals, the log, descriptors, memory."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from child import Child, child
from serving import Json, until

PING: Json = {"type": "ping"}
STREAM: Json = {"content": "Why?", "request_id": 1, "stream": True}
MEGABYTE = 1_048_576


@contextmanager
def idle(port: int, count: int) -> Iterator[list[socket.socket]]:
    """As many connections that say nothing."""
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sockets.append(socket.create_connection(("127.0.0.1", port)))  # noqa: PERF401 - closed one by one
        yield sockets
    finally:
        for one in sockets:
            one.close()


async def health(one: Child) -> Json:
    client = await one.connect()
    reply = await client.ask({"type": "health"})
    await client.close()
    return reply


async def refused(one: Child) -> None:
    """Waits until nobody is accepted any more."""
    try:
        while True:
            await (await one.connect()).close()
    except (ConnectionRefusedError, ConnectionResetError):
        pass  # reset: it was in the backlog when the listener was closed


# -- signals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_resting_process_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    async with child(tmp_path) as one:
        client = await one.connect()
        with anyio.fail_after(5):
            await client.ask({**PING, "request_id": 1})
            one.signal(number)
            assert await client.rest() == b""
            assert await one.end() == 0
    assert "stopped in good order" in one.log
    assert "Traceback" not in one.log


async def test_an_answer_under_way_is_finished_after_the_signal(tmp_path: Path) -> None:
    async with child(tmp_path, pace=200.0) as one:
        client = await one.connect()
        client.send(STREAM)
        with anyio.fail_after(10):
            await client.until("stream_chunk")
            one.signal(signal.SIGTERM)
            await refused(one)
            replies = []
            while not any(reply.get("status") == "draining" for reply in replies):
                client.send({"type": "health"})
                replies += await client.until("health_response")
            client.send({**STREAM, "request_id": 2})
            replies += await client.replies()
            assert await one.end() == 0
    assert [reply["code"] for reply in replies if reply.get("request_id") == 2] == ["draining"]
    assert [reply["done_reason"] for reply in replies if reply["type"] == "stream_end"] == ["stop"]


async def test_a_second_signal_ends_the_grace(tmp_path: Path) -> None:
    async with child(tmp_path, "stay", grace=60.0) as one:
        client = await one.connect()
        client.send(STREAM)
        with anyio.fail_after(10):
            await client.until("stream_chunk")
            one.signal(signal.SIGTERM)
            await client.until("heartbeat")
            one.signal(signal.SIGTERM)
            last = (await client.replies())[-1]
            assert await one.end() == 0
    assert (last["type"], last["code"], last["partial"]) == ("stream_error", "draining", "Hel")


async def test_the_grace_ends_by_itself(tmp_path: Path) -> None:
    async with child(tmp_path, "stay", grace=0.1) as one:
        client = await one.connect()
        client.send(STREAM)
        with anyio.fail_after(10):
            await client.until("stream_chunk")
            one.signal(signal.SIGTERM)
            assert (await client.replies())[-1]["code"] == "draining"
            assert await one.end() == 0


async def test_usr1_refuses_what_is_new_and_stays(tmp_path: Path) -> None:
    async with child(tmp_path, "stay") as one:
        client = await one.connect()
        client.send(STREAM)
        with anyio.fail_after(10):
            await client.until("stream_chunk")
            one.signal(signal.SIGUSR1)
            await one.logged("new requests are refused")
            assert (await client.ask({"content": "x"}))["code"] == "draining"
            assert (await health(one))["status"] == "draining"
            assert (await client.ask({"type": "cancel", "target": 1}))["type"] == "cancelled"


async def test_usr2_writes_every_stack_and_stays(tmp_path: Path) -> None:
    async with child(tmp_path) as one:
        client = await one.connect()
        with anyio.fail_after(5):
            one.signal(signal.SIGUSR2)
            await one.logged(r"(?s)Current thread .* in _serve|Current thread .*process\.py")
            assert (await client.ask(PING))["type"] == "pong"


async def test_our_own_fault_stands_in_the_log_under_its_trace_id(tmp_path: Path) -> None:
    async with child(tmp_path, "raise") as one:
        client = await one.connect()
        with anyio.fail_after(5):
            client.send(STREAM)
            told = (await client.until("stream_error"))[-1]
            trace = told["error"].rsplit(" ", 1)[1]
            line = await one.logged(rf"[^\n]*trace {trace}.*oops[^\n]*\n")
            assert (await client.ask(PING))["type"] == "pong"
    assert told["code"] == "internal"
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+ ERROR apollo: ", line)


# -- descriptors ------------------------------------------------------------------------------------------------------------


async def test_out_of_descriptors_accepting_pauses_and_goes_on(tmp_path: Path) -> None:
    async with child(tmp_path, "stay", descriptors="-n 64") as one:
        early = await one.connect()
        with anyio.fail_after(10):
            await early.ask(PING)
            with idle(one.port, 80):
                await one.logged("cannot accept a connection: Too many open files")
                assert (await early.ask(PING))["type"] == "pong"
            late = await one.connect()
            assert (await late.ask(PING))["type"] == "pong"


async def test_a_process_takes_the_descriptors_that_it_may_need(tmp_path: Path) -> None:
    """Most systems start a process with a soft limit of 1024."""
    async with child(tmp_path, "stay", descriptors="-S -n 256") as one:
        with anyio.fail_after(10), idle(one.port, 400):
            assert (await health(one))["clients"] == 401


# -- memory -----------------------------------------------------------------------------------------------------------------


async def test_a_line_without_an_end_keeps_memory_flat(tmp_path: Path) -> None:
    async with child(tmp_path) as one:
        client = await one.connect()
        with anyio.fail_after(30):
            await client.ask(PING)
            before = one.rss
            for _ in range(200):
                client.send(b"x" * MEGABYTE)
                await client.writer.drain()
            client.send(b"\n", PING)
            error, pong = await client.text(), await client.reply()
            grown = one.rss - before
    assert grown < 8 * MEGABYTE
    assert error.startswith("error: the line is longer")
    assert pong["type"] == "pong"


async def test_four_thousand_idle_connections_and_the_rules_for_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with child(tmp_path, "stay") as one:
        with anyio.fail_after(40):
            client = await one.connect()
            await client.ask(PING)
            before = one.rss
            with idle(one.port, 4095) as sockets:
                await until_clients(one, 4096)
                each = (one.rss - before) / 4095
                assert (await client.ask(PING))["type"] == "pong"

                newest = await one.connect()  # the 4,097th: the longest silent one goes
                assert (await newest.ask(PING))["type"] == "pong"
                assert await anyio.to_thread.run_sync(sockets[0].recv, 1) == b""
    with capsys.disabled():
        print(f"\nmemory of an idle connection: {each / 1024:.1f} KiB")
    assert each < 16 * 1024


async def until_clients(one: Child, count: int) -> None:
    client = one.clients[0]
    while (await client.ask({"type": "health"}))["clients"] < count:
        pass


async def test_two_hundred_clients_that_never_read_leave_memory_bounded_and_neighbours_alive(tmp_path: Path) -> None:
    async with child(tmp_path, "spew", max_buffered_bytes=32 * MEGABYTE, max_reply_bytes=8 * MEGABYTE) as one:
        neighbour = await one.connect()
        most = 0
        with anyio.fail_after(120):
            await neighbour.ask(PING)
            before = one.rss
            with idle(one.port, 200) as sockets:
                for number, deaf in enumerate(sockets):
                    deaf.sendall(b'{"content": "spew", "request_id": 1, "stream": true}\n')
                    if number % 10 == 0:
                        state = await neighbour.ask({"type": "health"})
                        most = max(most, state.get("buffered_bytes", 0))
                        assert await neighbour.ask({"content": "hi", "deadline": 5, "request_id": number})
                while (await neighbour.ask({"type": "health"}))["in_flight"]:
                    most = max(most, (await neighbour.ask({"type": "health"})).get("buffered_bytes", 0))
                grown = one.rss - before
    print(f"grown by {grown / MEGABYTE:.0f} MiB, {most / MEGABYTE:.0f} MiB unsent")
    assert most <= 32 * MEGABYTE
    assert grown < 500 * MEGABYTE  # the answers alone would be 1600; those cut off wait a moment to be stored


async def test_a_process_that_was_not_asked_anything_can_be_ended(tmp_path: Path) -> None:
    async with child(tmp_path) as one:
        one.signal(signal.SIGTERM)
        with anyio.fail_after(5):
            assert await one.end() == 0
            await until(lambda: one.process.returncode is not None)
