"""What one caller may ask for, and that everything counted is given back."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest
from gatewaying import ServedGateway, gateway
from hypothesis import given
from hypothesis import strategies as st
from scripted import EchoBackend, ScriptedBackend
from serving import until

from supervisor.fleet import descriptors
from supervisor.gateway import app, bodies
from supervisor.gateway.limits import CALLERS, Rates, UnderWay
from supervisor.gateway.problem import TooMany

CHAT = "/api/chat/apollo"


async def asked(served: ServedGateway, path: str = CHAT, key: str = "") -> tuple[int, str | None]:
    """A question's status, and when it may be asked again."""
    headers = {"X-API-Key": key} if key else {}
    status, _, response = await served.request("POST", path, json={"message": "hi"}, headers=headers)
    return status, response.headers.get("Retry-After")


# -- rates -----------------------------------------------------------------------------------------------------------------


def test_a_minutes_worth_may_be_asked_at_once_and_then_one_at_a_time() -> None:
    rates = Rates(60)
    assert [rates.take("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert rates.take("a", 0.0) == pytest.approx(1.0)
    assert rates.take("b", 0.0) == 0.0
    assert rates.take("a", 0.75) == pytest.approx(0.25)
    assert rates.take("a", 1.25) == 0.0
    assert rates.take("a", 1.25) > 0


@given(st.integers(1, 1000), st.lists(st.floats(0, 30), max_size=60))
def test_whoever_waits_as_told_is_served(per_minute: int, pauses: list[float]) -> None:
    rates, now, served = Rates(per_minute), 0.0, 0
    for pause in pauses:
        now += pause
        wait = rates.take("a", now)
        served += wait == 0.0
        if wait:
            assert 0 < wait <= 60 / per_minute
            now += wait + 1e-6
            assert rates.take("a", now) == 0.0
            served += 1
    assert served <= per_minute + now * per_minute / 60 + 1


def test_the_table_of_callers_does_not_grow() -> None:
    rates = Rates(1)
    for number in range(CALLERS + 100):
        rates.take(str(number), 0.0)
    assert rates.take(str(CALLERS + 99), 0.0) > 0  # remembered
    assert rates.take("0", 0.0) == 0.0  # forgotten


async def test_too_many_in_a_minute_are_told_to_wait_each_for_himself(tmp_path: Path) -> None:
    async with gateway(tmp_path, {"requests_per_minute": 3}, apollo=EchoBackend()) as served:
        _, key = served.key()
        with anyio.fail_after(5):
            for caller in ("", key):
                assert [(await asked(served, key=caller))[0] for _ in range(3)] == [200] * 3
                status, again = await asked(served, key=caller)
                assert status == 429
                assert 1 <= int(again or 0) <= 20
            assert [(await served.request("GET", "/api/session"))[0] for _ in range(5)] == [200] * 5


# -- under way -------------------------------------------------------------------------------------------------------------


def test_a_place_is_given_back_once() -> None:
    places = UnderWay(1)
    with places.one_more("a"):
        with pytest.raises(TooMany), places.one_more("a"):
            raise AssertionError("there was a place")
        with places.one_more("b"):
            assert places.total == 2
    assert places.total == 0
    with places.one_more("a"):
        assert places.total == 1


async def test_streams_count_as_long_as_they_are_open(tmp_path: Path) -> None:
    backend = ScriptedBackend("Hel", asyncio.Event())
    async with gateway(tmp_path, {"in_flight": 2}, apollo=backend) as served, AsyncExitStack() as stack:
        _, key = served.key()
        with anyio.fail_after(10):
            for _ in range(2):
                path = f"{CHAT}/stream?message=hi"
                events = await stack.enter_async_context(served.events("GET", path))
                await events.until("token")
            assert await asked(served) == (429, "1")
            async with served.events(
                "GET", path, headers={"X-API-Key": key}
            ) as events:  # another key's places are its own
                await events.until("token")
            await stack.aclose()
            await until(lambda: served.house.limits.under_way.total == 0)
    assert len(backend.prompts) == 3


async def test_every_ending_gives_the_place_back(tmp_path: Path) -> None:
    never = ScriptedBackend("Hel", asyncio.Event())
    async with gateway(tmp_path, {"in_flight": 1}, apollo=EchoBackend(), athena=never) as served:
        with anyio.fail_after(20):
            async with served.events("GET", f"{CHAT}/stream?message=hi") as events:
                seen = await events.all()
            resumed = {"Last-Event-ID": seen[-1].id}
            for method, path, how, status in (
                ("POST", CHAT, {"data": b"{"}, 400),
                ("POST", CHAT, {"data": b"{}"}, 422),
                ("POST", "/api/chat/nobody", {"json": {"message": "hi"}}, 404),
                ("GET", "/nothing", {}, 404),
                ("PUT", CHAT, {}, 405),
                ("GET", f"{CHAT}/stream?message=hi", {"headers": resumed}, 204),
                ("POST", CHAT, {"headers": {"X-API-Key": "chorus_x"}}, 401),
                ("POST", CHAT, {"json": {"message": "hi"}}, 200),
            ):
                told, _, _ = await served.request(method, path, **how)
                assert told == status
            for path in ("/api/chat/athena", "/api/chat/athena/stream"):
                for _ in range(3):
                    with anyio.move_on_after(0.1):
                        await served.request("POST", path, json={"message": "hi"})
                    await until(lambda: served.house.limits.under_way.total == 0)
            assert (await asked(served))[0] == 200


# -- bodies ----------------------------------------------------------------------------------------------------------------


async def test_a_body_has_a_size_whether_or_not_it_is_announced(tmp_path: Path) -> None:
    async def in_chunks() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 1024

    backend = EchoBackend()
    async with gateway(tmp_path, {"max_body_bytes": 4096}, apollo=backend) as served:
        with anyio.fail_after(5):
            for data in (b"x" * 65536, in_chunks(), b"x" * 4097):
                status, problem, _ = await served.request("POST", CHAT, data=data)
                assert (status, problem["code"]) == (413, "too_large")
            assert "gateway.max_body_bytes" in problem["error"]
            announced = ("Host: 127.0.0.1", "Content-Length: 9999999999")
            assert (await served.raw(f"POST {CHAT} HTTP/1.1", *announced)).status == 413
            fits = b'{"message": "hi"}'.ljust(4096)
            assert (await served.request("POST", CHAT, data=fits))[0] == 200
        assert served.house.limits.bodies.held == 0
    assert len(backend.prompts) == 1


async def test_whoever_may_be_anybody_has_a_small_body(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            status, _, _ = await served.request("POST", "/api/session", json={"key": "x" * 5000})
            assert status == 413
            assert (await served.request("POST", "/api/session", json={"key": "x" * 500}))[0] == 401


async def test_a_compressed_body_is_not_unpacked(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            for packed in (gzip.compress(b"\0" * 10_000_000), b"nonsense"):
                status, problem, _ = await served.request(
                    "POST", CHAT, data=packed, headers={"Content-Encoding": "gzip"}
                )
                assert (status, problem["code"]) == (415, "unsupported_encoding")


async def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_WITHIN", 0.05)
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            _, writer = await asyncio.open_connection("127.0.0.1", served.port)
            told = await served.raw(f"POST {CHAT} HTTP/1.1", "Host: 127.0.0.1", "Content-Length: 100", body=b'{"mess')
            writer.close()
        assert told.status == 408
        assert (served.house.limits.bodies.held, served.house.limits.under_way.total) == (0, 0)


async def test_all_bodies_together_have_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "ALL_BODIES", 10_000)
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        reading = served.house.limits.bodies
        with anyio.fail_after(5):
            _, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(
                f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 20000\r\n\r\n".encode() + b"x" * 8000
            )
            await until(lambda: reading.held == 8000)
            status, _, response = await served.request("POST", CHAT, data=b"x" * 4000)
            assert (status, response.headers["Retry-After"]) == (429, "1")
            writer.close()
            await until(lambda: reading.held == 0)
            assert (await asked(served))[0] == 200


# -- connections -----------------------------------------------------------------------------------------------------------


async def test_a_head_that_does_not_end_and_a_connection_that_rests_are_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "KEPT_ALIVE", 0.1)
    beginnings = (
        b"",
        b"GET",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ",
        b"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    )
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(10):
            for begin in beginnings:
                reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
                writer.write(begin)
                told = await reader.read()
                assert told.startswith(b"HTTP/1.1 404") or told == b""
                writer.close()


async def test_a_thousand_connections_that_say_nothing_change_nothing(tmp_path: Path) -> None:
    descriptors.make_room()
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(30):
            idle = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(1000)]
            for at, (_, writer) in enumerate(idle):
                writer.write(b"GET / HTTP/1.1\r\nX-Slow: "[: at % 24])
            assert (await asked(served))[0] == 200
            async with served.events("GET", f"{CHAT}/stream?message=hi") as events:
                assert (await events.until("done"))[-1].name == "done"
            for _, writer in idle:
                writer.close()
