"""What a specialist wrote down, over HTTP."""

from __future__ import annotations

from pathlib import Path

import anyio
from gatewaying import Events, config_in, gateway, served_by
from msgspec.structs import replace
from scripted import EchoBackend
from serving import until

from protocol.settings import Colleague
from supervisor.gateway.house import House

STAMP = "2026-11-20T10:00:0{0}.000"


def line(second: int, message: str, level: str = "INFO") -> str:
    return f"{STAMP.format(second)} {level} apollo: {message}\n"


def write(folder: Path, *lines: str, name: str = "apollo.log") -> None:
    (folder / "logs").mkdir(exist_ok=True)
    with (folder / "logs" / name).open("a") as file:
        file.writelines(lines)


def logging_gateway(folder: Path):  # type: ignore[no-untyped-def]
    config = replace(config_in(folder, [Colleague("apollo", "127.0.0.1", 1)]), log_dir=str(folder / "logs"))
    return served_by(config, {})


async def messages(events: Events, count: int) -> list[str]:
    seen = []
    async for event in events:
        seen.append(event.json["message"] if event.name == "log" else event.name)
        if len(seen) == count:
            break
    return seen


async def test_the_last_records_come_as_json_or_as_text(tmp_path: Path) -> None:
    write(tmp_path, *(line(number, f"number {number}") for number in range(5)), line(5, "one\\ntwo", "ERROR"))
    async with logging_gateway(tmp_path) as served:
        told = await served.get("/api/specialists/apollo-ai/logs?lines=2")
        assert (told["name"], told["specialist_id"]) == ("apollo", "apollo-ai")
        assert [(one["level"], one["message"]) for one in told["lines"]] == [
            ("INFO", "number 4"),
            ("ERROR", "one\ntwo"),
        ]
        assert told["lines"][0]["time"].startswith(STAMP.format(4))
        path = "/api/specialists/apollo/logs?lines=1"
        _, text, response = await served.request("GET", path, headers={"Accept": "text/plain"})
        assert text == f"{STAMP.format(5)} ERROR one\ntwo\n"
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert await served.get("/api/specialists/apollo/logs?lines=0") == told | {"lines": []}


async def test_without_a_file_there_are_no_records(tmp_path: Path) -> None:
    async with logging_gateway(tmp_path) as served:
        assert (await served.get("/api/specialists/apollo/logs"))["lines"] == []
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        status, told, _ = await served.request("GET", "/api/specialists/apollo/logs")
    assert status == 404
    assert "chorus logs apollo" in told["error"]


async def test_what_is_written_is_followed_across_rotations_and_restarts(tmp_path: Path) -> None:
    write(tmp_path, line(0, "before"), line(1, "last"))
    log = tmp_path / "logs/apollo.log"
    async with logging_gateway(tmp_path) as served:
        with anyio.fail_after(10):
            async with served.events("GET", "/api/specialists/apollo/logs?lines=1&follow=1") as events:
                assert await messages(events, 1) == ["last"]
                write(tmp_path, line(2, "live"))
                write(tmp_path, "Traceback\n", name="apollo.out")
                assert sorted(await messages(events, 2)) == ["Traceback", "live"]
                write(tmp_path, line(3, "just before"))
                log.rename(log.with_name("apollo.log.1"))
                write(tmp_path, line(4, "behind the rotation"))
                assert await messages(events, 2) == ["just before", "behind the rotation"]


async def test_a_browser_that_asks_for_events_follows(tmp_path: Path) -> None:
    write(tmp_path, line(0, "one"))
    async with logging_gateway(tmp_path) as served:
        with anyio.fail_after(5):
            path, headers = "/api/specialists/apollo/logs", {"Accept": "text/event-stream"}
            async with served.events("GET", path, headers=headers) as events:
                assert await messages(events, 1) == ["one"]


async def test_a_lost_connection_goes_on_where_it_was(tmp_path: Path) -> None:
    write(tmp_path, line(0, "one"))
    path = "/api/specialists/apollo/logs?follow=true"
    async with logging_gateway(tmp_path) as served:
        with anyio.fail_after(5):
            async with served.events("GET", path) as events:
                first = await anext(aiter(events))
            write(tmp_path, line(1, "two"))
            async with served.events("GET", path, headers={"Last-Event-ID": first.id}) as events:
                assert await messages(events, 1) == ["two"]


async def test_a_place_that_is_not_known_any_more_begins_again_with_a_word(tmp_path: Path) -> None:
    write(tmp_path, line(0, "one"))
    path = "/api/specialists/apollo/logs?follow=true"
    async with logging_gateway(tmp_path) as served:
        with anyio.fail_after(5):
            async with served.events("GET", path, headers={"Last-Event-ID": "0123-4"}) as events:
                assert await messages(events, 2) == ["stream_reset", "one"]


async def test_a_gateway_that_goes_down_does_not_wait_for_who_follows(tmp_path: Path) -> None:
    write(tmp_path, line(0, "one"))
    async with logging_gateway(tmp_path) as served:
        with anyio.fail_after(5):
            async with served.events("GET", "/api/specialists/apollo/logs?follow=1") as events:
                assert await messages(events, 1) == ["one"]
                await served.house.drain(60.0)
                assert await events.all() == []


async def test_who_leaves_has_the_files_closed(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from supervisor.gateway import logs

    monkeypatch.setattr(logs, "RESUME_GRACE", 0.0)
    write(tmp_path, line(0, "one"))
    async with logging_gateway(tmp_path) as served:
        with anyio.fail_after(5):
            async with served.events("GET", "/api/specialists/apollo/logs?follow=1") as events:
                await messages(events, 1)
                assert under_way(served.house) == 1
            await until(lambda: under_way(served.house) == 0)


def under_way(house: House) -> int:
    return house.streams.under_way
