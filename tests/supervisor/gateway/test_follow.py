"""Readers' connections: those that are slow, that read nothing, that come back, and those that only wait."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from gatewaying import Event, ServedGateway, gateway
from scripted import ScriptedBackend
from serving import until

from protocol.errors import ModelError
from supervisor.gateway.follow import GONE_AFTER, SEND_BUFFER, USUAL, Connection, Patience
from supervisor.gateway.record import Head
from supervisor.gateway.stream import READERS, RING_BYTES, Stream
from supervisor.gateway.streams import ALL_RINGS

QUICK = Patience(look_every=0.01, status=0.02, comment=0.02, write=0.2)
PIECE = "x" * 2500  # of an answer; a token's event says it three times
CHAT = "/api/chat/apollo/stream"
HEAD = Head(id="s1", kind="chat", created=1.0)


class Sleeper:
    """A client whose kernel takes next to nothing for it, and that reads only when it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def events(self) -> list[Event]:
        """Everything up to the end of the answer."""
        body, data = b"", await self.reader.readuntil(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in data
        while size := int(await self.reader.readline(), 16):
            body += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        blocks = body.decode().split("\n\n")
        return [Event(block) for block in blocks if "data:" in block]


@asynccontextmanager
async def sleeper(served: ServedGateway, path: str = CHAT, **body: Any) -> AsyncGenerator[Sleeper]:
    """Asks, and reads nothing."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", served.port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=1024)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    try:
        yield Sleeper(reader, writer)
    finally:
        writer.transport.abort()


def open_streams(served: ServedGateway) -> list[Stream]:
    return [stream for stream in served.house.streams._open.values() if stream.head.kind == "chat"]


async def only_stream(served: ServedGateway) -> Stream:
    await until(lambda: open_streams(served))
    [stream] = open_streams(served)
    return stream


# -- who reads nothing --------------------------------------------------------------------------------------------------------


async def test_a_thousand_who_never_read_are_cut_off_and_their_answers_end_while_others_go_on(tmp_path: Path) -> None:
    many, start, go_on = 1000, asyncio.Event(), asyncio.Event()
    never = ScriptedBackend(start, *[2 * PIECE] * 17, asyncio.Event())
    others = ScriptedBackend("Hel", go_on, "lo")
    settings = {"streams": 2 * many, "in_flight": 2 * many, "requests_per_minute": 10 * many}
    patience = Patience(look_every=0.05, write=0.2)
    held = 0

    def held_by_rings() -> int:
        return sum(stream.size for stream in open_streams(served))

    async with (
        gateway(tmp_path, settings, patience, apollo=never, athena=others) as served,
        AsyncExitStack() as clients,
    ):
        with anyio.fail_after(60):
            path = "/api/chat/athena/stream"
            reading = await clients.enter_async_context(served.events("POST", path, json={"message": "hi"}))
            await reading.until("token")
            for _ in range(many):
                await clients.enter_async_context(sleeper(served, message="hi"))
            start.set()
            while never.cut_short < many:
                held = max(held, held_by_rings())
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
            assert held <= 2 * ALL_RINGS
            assert others.cut_short == 0
            go_on.set()
            assert [event.name for event in await reading.all()] == ["token", "complete", "done"]
            await until(lambda: served.house.streams.under_way == 0)
    assert len(never.prompts) == many


@pytest.mark.parametrize("size", [10_000, 30_000, 60_000, 100_000, 400_000])
async def test_an_answer_that_is_over_is_not_held_for_who_never_reads_it(tmp_path: Path, size: int) -> None:
    async with gateway(tmp_path, {}, QUICK, apollo=ScriptedBackend("x" * size)) as served:
        with anyio.fail_after(10):
            async with sleeper(served, message="hi"):
                await until(lambda: served.house.streams.readers == 1)
                await until(lambda: served.house.streams.readers == 0)


async def test_the_kernel_holds_little_for_a_reader_and_gives_up_on_one_that_is_gone(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("Hel", asyncio.Event())) as served:
        with anyio.fail_after(5):
            async with served.events("POST", CHAT, json={"message": "hi"}) as events:
                await events.until("token")
                [connection] = served.house.beat._connections
                raw = connection.transport.get_extra_info("socket")
                assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * SEND_BUFFER  # as Linux counts
                assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == GONE_AFTER


async def test_a_reader_that_falls_off_the_ring_is_told_the_text_so_far_and_then_the_rest_once(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    pieces = [f"{number:04}{PIECE}" for number in range(400)]
    assert 3 * len("".join(pieces)) > 2 * RING_BYTES
    backend = ScriptedBackend(*pieces, go_on, "and ", "the rest")
    async with gateway(tmp_path, apollo=backend) as served:
        with anyio.fail_after(20):
            async with sleeper(served, message="hi") as client:
                stream = await only_stream(served)
                await until(lambda: stream.visible == len(pieces))
                assert stream.first > 0
                reading = asyncio.create_task(client.events())
                await until(lambda: all(reader.next == stream.visible for reader in stream.readers))
                go_on.set()
                told = await reading
    reset = [event.name for event in told].index("stream_reset")
    before, said, after = told[:reset], told[reset].json, told[reset + 1 :]
    assert [event.json["content"] for event in before] == pieces[:reset]
    assert told[reset].id == ""
    assert said["snapshot"] == {"specialist_id": "apollo", "content": "".join(pieces)}
    assert 0 < said["lost"] <= len(pieces) - reset
    assert [event.name for event in after] == ["token", "token", "complete", "done"]
    assert [event.json["content"] for event in after[:3]] == ["and ", "the rest", "".join(pieces) + "and the rest"]


# -- who waits ----------------------------------------------------------------------------------------------------------------


def test_the_status_line_is_out_after_a_second_and_a_comment_every_fifteen() -> None:
    assert USUAL.status + USUAL.look_every <= 1.0
    assert USUAL.comment + 2 * USUAL.look_every <= 15.0
    assert USUAL.write == 10.0


async def test_comments_come_before_the_first_token_and_in_every_silence(tmp_path: Path) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    backend = ScriptedBackend(first, "Hel", second, "lo")
    async with gateway(tmp_path, {}, QUICK, apollo=backend) as served:
        with anyio.fail_after(5):
            async with served.events("POST", CHAT, json={"message": "hi"}) as events:

                async def line() -> str:
                    return (await events.response.content.readline()).decode().removesuffix("\n")

                assert [await line() for _ in range(3)] == [":"] * 3
                first.set()
                while (one := await line()) == ":":
                    pass
                assert one == "retry: 500"
                while await line():
                    pass
                assert [await line() for _ in range(3)] == [":"] * 3
                second.set()
                assert [event.name for event in await events.all()] == ["token", "complete", "done"]


async def test_work_that_fails_after_the_status_line_is_an_event(tmp_path: Path) -> None:
    fail = asyncio.Event()
    async with gateway(tmp_path, {}, QUICK, apollo=ScriptedBackend(fail, ModelError("it broke"))) as served:
        with anyio.fail_after(5):
            async with served.events("POST", CHAT, json={"message": "hi"}) as events:
                fail.set()
                error, done = await events.all()
    assert (error.name, error.json["code"], done.name) == ("error", "model_error", "done")


async def test_the_first_event_says_when_to_come_back_and_no_other(tmp_path: Path) -> None:
    wait = asyncio.Event()
    async with gateway(tmp_path, {}, QUICK, apollo=ScriptedBackend(wait, "Hel", "lo")) as served:
        with anyio.fail_after(5):
            async with served.events("POST", CHAT, json={"message": "hi"}) as events:
                wait.set()
                blocks = [block.lstrip(":\n") async for block in events.blocks()]
    assert [block.startswith("retry: 500\n") for block in blocks] == [True, False, False, False]


class Pipe(asyncio.Transport):
    """A transport that is as full as a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 0
        self.is_aborted = False

    def get_write_buffer_size(self) -> int:
        return self.left

    def abort(self) -> None:
        self.is_aborted = True


class Answer:
    """A response whose writes return when a test lets them."""

    def __init__(self) -> None:
        self.taken = asyncio.Event()

    async def write(self, _: bytes) -> None:
        await self.taken.wait()


async def test_who_takes_little_by_little_is_not_cut_off_and_who_takes_nothing_is() -> None:
    patience, pipe = Patience(write=10.0), Pipe()
    connection = Connection(Stream(HEAD).reader(), pipe)
    async with anyio.create_task_group() as group:
        group.start_soon(connection.write, Answer(), b"x")
        await anyio.lowlevel.checkpoint()
        for now, left in ((0, 100), (9, 99), (18, 98), (28, 98)):
            pipe.left = left
            connection.look(float(now), patience)
            assert not pipe.is_aborted, f"after {now} s"
        connection.look(28.1, patience)
        assert pipe.is_aborted
        group.cancel_scope.cancel()


async def test_a_comment_is_due_after_the_last_write_and_not_while_one_waits() -> None:
    patience, pipe, answer = Patience(status=1.0, comment=15.0), Pipe(), Answer()
    connection = Connection(Stream(HEAD).reader(), pipe)
    born = asyncio.get_running_loop().time()
    connection.look(born + 0.9, patience)
    assert not connection.is_due
    connection.look(born + 1.1, patience)
    assert connection.is_due
    connection.is_due, connection.is_begun = False, True
    async with anyio.create_task_group() as group:
        group.start_soon(connection.write, answer, b"x")
        await anyio.lowlevel.checkpoint()
        pipe.left = 5
        connection.look(born + 20.0, patience)
        assert not connection.is_due
        answer.taken.set()
    connection.look(born + 21.0, patience)
    connection.look(born + 35.9, patience)
    assert not connection.is_due
    connection.look(born + 36.0, patience)
    assert connection.is_due


# -- who comes back -----------------------------------------------------------------------------------------------------------


async def answered(served: ServedGateway, question: str) -> tuple[str, list[Event]]:
    """A finished answer: the id of its stream, and its events."""
    async with served.events("POST", CHAT, json={"message": question}) as events:
        return events.stream_id, await events.all()


async def followed(served: ServedGateway, path: str, cursor: str, *, in_query: bool = False) -> list[str] | int:
    """The ids of what a reader with this cursor is told, or the status without any."""
    how: dict[str, Any] = {"params": {"last_event_id": cursor}} if in_query else {"headers": {"Last-Event-ID": cursor}}
    async with served.session.get(served.url + path, **how) as response:
        if response.status != 200:
            return response.status
        blocks = (await response.text()).removesuffix("\n\n").split("\n\n")
        return [Event(block).id for block in blocks]


@pytest.mark.parametrize("in_query", [False, True])
async def test_a_reader_goes_on_behind_its_cursor_wherever_that_is(tmp_path: Path, in_query: bool) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("one", "two", "three")) as served:
        with anyio.fail_after(5):
            stream_id, events = await answered(served, "count")
            ids = [event.id for event in events]
            epoch = ids[0].rpartition("-")[0]
            for path in (f"/api/stream/events/{stream_id}", CHAT):
                for number in range(len(ids) - 1):
                    assert await followed(served, path, ids[number], in_query=in_query) == ids[number + 1 :]
                for at_the_end_or_beyond in (ids[-1], f"{epoch}-{len(ids)}", f"{epoch}-{10**17}"):
                    assert await followed(served, path, at_the_end_or_beyond, in_query=in_query) == 204
                for nobodys in ("garbage", "-", "e-x", "e-" + "9" * 30):
                    assert await followed(served, path, nobodys, in_query=in_query) == 404
    assert ids == [f"{epoch}-{number}" for number in range(5)]


async def test_a_cursor_beyond_the_end_of_a_live_answer_is_at_its_end(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with gateway(tmp_path, apollo=ScriptedBackend("one", go_on, "two")) as served:
        with anyio.fail_after(5):
            async with served.events("GET", CHAT + "?message=count") as events:
                [first] = await events.until("token")
                beyond = first.id.replace("-0", "-7")
                path = f"/api/stream/events/{events.stream_id}"
                async with served.events("GET", path, headers={"Last-Event-ID": beyond}) as again:
                    go_on.set()
                    assert [event.json["content"] for event in await again.until("token")] == ["two"]


async def test_a_cursor_of_another_stream_has_everything_told_anew(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("one", "two")) as served:
        with anyio.fail_after(5):
            (first_id, first), (_, second) = await answered(served, "a"), await answered(served, "b")
            here = f"/api/stream/events/{first_id}"
            assert await followed(served, here, second[0].id) == [event.id for event in first]
            assert await followed(served, here, "f" * 16 + "-3") == [event.id for event in first]
            # Where no stream is named, the cursor names one.
            assert await followed(served, CHAT, second[0].id) == [event.id for event in second[1:]]
            assert await followed(served, CHAT, "f" * 16 + "-3") == 404


async def test_the_header_is_newer_than_the_query(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("one", "two")) as served:
        with anyio.fail_after(5):
            stream_id, events = await answered(served, "count")
            path = f"/api/stream/events/{stream_id}?last_event_id={events[0].id}"
            assert await followed(served, path, events[2].id) == [events[3].id]


# -- how many -----------------------------------------------------------------------------------------------------------------


async def test_one_stream_has_only_so_many_readers(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("Hel", asyncio.Event())) as served:
        with anyio.fail_after(10):
            async with served.events("POST", CHAT, json={"message": "hi"}) as events:
                await events.until("token")
                stream, path = await only_stream(served), f"/api/stream/events/{events.stream_id}"
                others = [stream.reader() for _ in range(READERS - 1)]
                status, told, response = await served.request("GET", path)
                assert (status, told["code"], response.headers["Retry-After"]) == (503, "busy", "5")
                others[0].close()
                async with served.events("GET", path) as again:
                    assert [event.json["content"] for event in await again.until("token")] == ["Hel"]


async def test_only_so_many_answers_are_under_way(tmp_path: Path) -> None:
    async with gateway(tmp_path, {"streams": 2}, apollo=ScriptedBackend("Hel", asyncio.Event())) as served:
        with anyio.fail_after(5):
            async with AsyncExitStack() as readers:
                for _ in range(2):
                    events = served.events("POST", CHAT, json={"message": "hi"})
                    await (await readers.enter_async_context(events)).until("token")
                for path in (CHAT, "/api/chat/apollo"):
                    status, told, response = await served.request("POST", path, json={"message": "hi"})
                    assert (status, told["code"], response.headers["Retry-After"]) == (429, "too_many_requests", "1")
            await until(lambda: served.house.streams.under_way == 0)
            async with served.events("POST", CHAT, json={"message": "hi"}) as events:
                await events.until("token")
