"""The gateway ends: told to, replaced, killed. All of its readers come to a proper end, and none reads anything twice."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import anyio
import anyio.to_thread
import pytest
from bare_gateway import BareGateway
from crowding import Follower
from fronting import WITHIN, Front, wait_until
from gatewaying import config_in
from keeping import gone
from lookalikes.ollama import Script
from proxying import Proxy

from protocol.settings import Colleague

GRACE = 1.0  # of the gateway that is looked at here
ENDLESS = Script(tokens=("and ", "so ", "on "), endless=True, rate=2)
WORDS = tuple(f"{number} " for number in range(10))
STEPPED = Script(tokens=WORDS, stepped=True)


@asynccontextmanager
async def crowd(url: str, count: int) -> AsyncGenerator[list[Follower]]:
    """So many readers, who ask two specialists in turn. Waits for their ends."""
    paths = [f"/api/chat/{('apollo', 'athena')[number % 2]}/stream" for number in range(count)]
    followers = [Follower(url, path, {"message": f"{number}"}) for number, path in enumerate(paths)]
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for one in followers:
                group.start_soon(one.run)
            yield followers


async def begun(followers: Sequence[Follower]) -> None:
    for one in followers:
        await one.has(1)


async def stepped(front: Front, followers: Sequence[Follower], asked: int) -> None:
    """Lets one token go of each answer, when all have been asked for since there were so many questions."""
    await anyio.to_thread.run_sync(front.server.wait_asked, asked + len(followers))
    for _ in followers:
        front.server.step()
    await begun(followers)


@asynccontextmanager
async def resting(port: int) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
    """A connection that had its answer. What it yields waits until it is hung up on: from then on only answers have grace."""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:

        async def hung_up() -> None:
            async for _ in stream:
                pass

        await stream.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await stream.receive()
        yield hung_up


async def test_told_to_end_it_gives_a_hundred_readers_a_proper_end(front: Front) -> None:
    front.server.use(ENDLESS)
    pid = front.status["pid"]
    async with crowd(front.url, 100) as followers:
        await begun(followers)
        os.kill(pid, signal.SIGTERM)
        await gone(pid, within=GRACE + 2.0)
    for one in followers:
        one.check()
        assert one.end["code"] == "gateway_restarted"
        assert one.losses == []


async def test_told_to_end_it_waits_for_nobody_who_does_not_read(front: Front) -> None:
    front.server.use(Script(tokens=("word " * 1000,), endless=True))
    await anyio.to_thread.run_sync(wait_until, lambda: front.status["pid"] is not None, WITHIN, "no gateway is there")
    pid = front.status["pid"]
    with ExitStack() as rude:
        for path in ("/api/chat/apollo/stream", "/api/chat/athena/stream", "/api/chat/apollo"):
            one = rude.enter_context(socket.create_connection(("127.0.0.1", front.port)))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            body = b'{"message": "go on"}'
            one.sendall(
                b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
                % (path.encode(), len(body), body)
            )
        rude.enter_context(socket.create_connection(("127.0.0.1", front.port))).sendall(b"POST /api/chat/apollo HT")
        await anyio.to_thread.run_sync(front.server.wait_asked, len(front.server.asked) + 3)
        os.kill(pid, signal.SIGTERM)
        await gone(pid, within=GRACE + 2.0)


async def test_killed_it_tells_a_hundred_readers_who_come_back_all_that_had_arrived(front: Front) -> None:
    front.server.use(ENDLESS)
    async with crowd(front.url, 100) as followers:
        await begun(followers)
        so_far = [one.text for one in followers]
        front.kill()
    for one, text in zip(followers, so_far, strict=True):
        one.check()
        assert one.end["code"] == "gateway_restarted"
        assert one.end["partial"].startswith(text)
    withdrawn = [asked.gone for asked in front.server.asked[-100:]]
    await anyio.to_thread.run_sync(
        wait_until, lambda: all(one.is_set() for one in withdrawn), WITHIN, "not every question was withdrawn"
    )


async def test_replaced_it_refuses_nobody_and_finishes_its_answers(front: Front) -> None:
    front.server.use(STEPPED)
    asked, answers = len(front.server.asked), list[int | str]()

    async def call_again_and_again(method: str, path: str, *, keeps: bool) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=not keeps)) as session:
            while True:
                try:
                    async with session.request(method, front.url + path, data=b"{}") as response:
                        answers.append(response.status)
                except aiohttp.ClientError as error:
                    answers.append(repr(error))

    async with Proxy(front.port) as proxy, anyio.create_task_group() as callers:
        callers.start_soon(partial(call_again_and_again, "GET", "/v1/models", keeps=False))
        callers.start_soon(partial(call_again_and_again, "POST", "/api/chat/apollo", keeps=True))
        async with crowd(front.url, 10) as staying, crowd(proxy.url, 10) as moving:
            await stepped(front, [*staying, *moving], asked)
            pid = front.status["pid"]
            async with resting(front.port) as hung_up:
                await anyio.to_thread.run_sync(front.team.run, "restart", "gateway")
                await hung_up()
            proxy.cut()  # whoever comes back comes to the new one, while the old one goes on with the answer
            for _ in range(20 * len(WORDS)):
                front.server.step()
        await gone(pid)
        callers.cancel_scope.cancel()
    for one in (*staying, *moving):
        one.check()
        assert one.end["type"] == "complete", one.end
    assert [one.losses for one in staying] == [[]] * 10
    assert all(one.losses for one in moving)
    assert set(answers) == {200, 422}


# -- with nobody who keeps it -----------------------------------------------------------------------------------------------


@pytest.fixture
def bare(front: Front, tmp_path: Path) -> Iterator[BareGateway]:
    team = [Colleague(name, "127.0.0.1", front.team.port(name)) for name in ("apollo", "athena")]
    with BareGateway(config_in(tmp_path, team), tmp_path / "log") as one:
        yield one


async def kill(gateway: BareGateway) -> None:
    await anyio.to_thread.run_sync(gateway.kill)
    gateway.start()


async def test_killed_at_any_moment_and_again_it_loses_and_doubles_nothing(front: Front, bare: BareGateway) -> None:
    front.server.use(Script(tokens=WORDS, rate=20))
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with crowd(bare.url, 20) as followers:
        for longest in (0.6, 0.0, 0.9, 0.4):
            await anyio.sleep(chance.uniform(0, longest))
            await kill(bare)
    for one in followers:
        one.check()


async def test_a_full_disk_ends_no_stream_and_a_kill_then_no_reader(front: Front, bare: BareGateway) -> None:
    front.server.use(STEPPED)
    asked = len(front.server.asked)
    async with crowd(bare.url, 4) as followers:
        await stepped(front, followers, asked)
        resource.prlimit(bare.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        for _ in followers:
            front.server.step()
        for one in followers:
            await one.has(2)
        await kill(bare)
    for one in followers:
        one.check(disk_was_full=True)
        assert one.end["partial"] == WORDS[0]
        assert one.text == WORDS[0] + WORDS[1]
