"""What was said with a specialist: from its own store, and from an Engram."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from gatewaying import gateway
from scripted import EchoBackend


async def test_the_originals_route_is_served_from_the_specialists_own_store(tmp_path: Path) -> None:
    async with gateway(tmp_path, athena=EchoBackend()) as served:
        with anyio.fail_after(5):
            for number in range(3):
                await served.post("/api/chat/athena-ai", message=f"question {number}", session_id=f"s{number % 2}")
            told = await served.get("/api/conversations/athena-ai?limit=4")
            assert [turn["content"].strip() for turn in told["conversations"]] == [
                "question 1", "question 1", "question 2", "question 2",
            ]  # fmt: skip
            assert told["total"] == 6
            assert set(told["conversations"][0]) == {"session_id", "role", "content", "timestamp", "model"}
            one = await served.get("/api/conversations/athena?session_id=s1")
            assert {turn["session_id"] for turn in one["conversations"]} == {"s1"}
            before = told["conversations"][0]["timestamp"]
            older = await served.get(f"/api/conversations/athena?before={before!r}")
            assert [turn["content"].strip() for turn in older["conversations"]] == ["question 0", "question 0"]
            status, wrong, _ = await served.request("GET", "/api/conversations/athena?limit=0")
            assert (status, wrong["error"]) == (422, "limit: expected int >= 1")
            status, wrong, _ = await served.request("GET", "/api/conversations/athen")
            assert status == 404


@asynccontextmanager
async def engram(answer: web.StreamResponse | dict[str, object]) -> AsyncIterator[tuple[str, list[str]]]:
    """Somebody else's Engram, which gives this answer to everything; its address, and what it was asked."""
    asked: list[str] = []

    async def told(request: web.Request) -> web.StreamResponse:
        asked.append(request.path_qs)
        return answer if isinstance(answer, web.StreamResponse) else web.json_response(answer)

    app = web.Application()
    app.router.add_get("/{rest:.*}", told)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


async def test_a_configured_engram_is_asked_instead(tmp_path: Path) -> None:
    turns = {"conversations": [{"anything": 1}], "total": 7, "more": True}
    async with (
        engram(turns) as (url, asked),
        gateway(tmp_path, {"engram_url": url + "/"}, athena=EchoBackend()) as served,
    ):
        with anyio.fail_after(5):
            told = await served.get("/api/conversations/Athena?limit=3&session_id=a%26b")
    assert told == {"conversations": [{"anything": 1}], "total": 7}
    assert asked == ["/api/conversations/athena-ai?limit=3&session_id=a%26b"]


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (web.Response(status=404), 404, "knows nothing of athena"),
        (web.Response(status=500), 502, "answers with status 500"),
        (web.Response(text="<html>"), 502, "answers with something else"),
        (web.Response(text='{"conversations": 3}'), 502, "answers with something else"),
    ],
)
async def test_an_engram_that_fails_is_said_to(tmp_path: Path, answer: web.Response, status: int, said: str) -> None:
    async with engram(answer) as (url, _), gateway(tmp_path, {"engram_url": url}, athena=EchoBackend()) as served:
        with anyio.fail_after(5):
            got, told, _ = await served.request("GET", "/api/conversations/athena")
    assert got == status
    assert said in told["error"]


async def test_an_engram_that_is_not_there_is_said_not_to_be(tmp_path: Path) -> None:
    async with gateway(tmp_path, {"engram_url": "http://127.0.0.1:1"}, athena=EchoBackend()) as served:
        with anyio.fail_after(5):
            status, told, _ = await served.request("GET", "/api/conversations/athena")
    assert status == 502
    assert "Engram at http://127.0.0.1:1 cannot be asked" in told["error"]
