"""So many connections and no more, behind the door that the gateway's process has."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from gatewaying import Raw, config_in, gateway
from scripted import EchoBackend
from serving import until

from supervisor.gateway import app, limits
from supervisor.gateway.house import House
from supervisor.gateway.operation import Call, Operation
from supervisor.gateway.process import Door

ASK = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Held:
    """A route that answers when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.waiting = 0

    async def run(self, call: Call[None]) -> dict[str, str]:
        self.waiting += 1
        await self.go_on.wait()
        return {}


@asynccontextmanager
async def door(folder: Path, **settings: Any) -> AsyncGenerator[int]:
    """A gateway's process without the process: its port."""
    house = House(config_in(folder, [], **settings))
    listener = socket.create_server(("127.0.0.1", 0))
    async with anyio.create_task_group() as tasks:
        await tasks.start(house.run)
        opened = Door(house, [listener], None)
        await opened.open()
        try:
            with anyio.fail_after(20):
                yield listener.getsockname()[1]
        finally:
            await opened.close()
            await house.drain(0.0)
            await opened.see_off()
            tasks.cancel_scope.cancel()


async def told(stream: Stream) -> int:
    """The status of an answer on a connection that stays; 0 where it was closed."""
    reader, writer = stream
    try:
        writer.write(ASK)
        return (await Raw.read(reader)).status
    except ConnectionError:
        return 0


async def test_who_says_nothing_makes_room_for_who_asks(tmp_path: Path) -> None:
    async with door(tmp_path, connections=3) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert await told(silent[2]) == 200  # all three have come
        asking = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        assert [await told(one) for one in asking] == [200, 200]
        assert [await told(one) for one in silent] == [0, 0, 200]
        for _, writer in (*silent, *asking):
            writer.close()


async def test_who_is_being_answered_stays_and_who_comes_then_is_turned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held()
    route = Operation(method="GET", path="/api/test/held", run=held.run, tag="test", summary="")
    monkeypatch.setattr(app, "OPERATIONS", (*app.OPERATIONS, route))
    async with door(tmp_path, connections=2) as port:
        busy = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for _, writer in busy:
            writer.write(b"GET /api/test/held HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await until(lambda: held.waiting == 2)
        late = await asyncio.open_connection("127.0.0.1", port)
        assert await told(late) == 0
        held.go_on.set()
        assert [(await Raw.read(reader)).status for reader, _ in busy] == [200, 200]
        again = await asyncio.open_connection("127.0.0.1", port)
        assert await told(again) == 200
        for _, writer in (*busy, late, again):
            writer.close()


async def test_a_flood_of_connections_keeps_nobody_out(tmp_path: Path) -> None:
    async with door(tmp_path, connections=20) as port:
        flood = [await asyncio.open_connection("127.0.0.1", port) for _ in range(300)]
        for _ in range(5):
            asking = await asyncio.open_connection("127.0.0.1", port)
            assert await told(asking) == 200
            asking[1].close()
        for _, writer in flood:
            writer.close()


async def test_who_does_not_take_a_whole_answer_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def much(call: Call[None]) -> dict[str, str]:
        return {"much": "x" * 32_000_000}

    route = Operation(method="GET", path="/api/test/much", run=much, tag="test", summary="")
    monkeypatch.setattr(app, "OPERATIONS", (*app.OPERATIONS, route))
    monkeypatch.setattr(limits, "SENT_WITHIN", 0.2)
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
            writer.write(b"GET /api/test/much HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            under_way = served.house.limits.under_way
            await until(lambda: under_way.total == 1)  # it counts until it has been taken
            await until(lambda: under_way.total == 0 and served.house.requests.under_way == 0)
            assert len(await reader.read()) < 32_000_000
            writer.close()
