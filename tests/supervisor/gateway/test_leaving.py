"""Whoever leaves ends the answer at the model server within a second, unless it said that it will be back."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from fronting import WITHIN, Front, program
from gatewaying import gateway
from lookalikes.ollama import Script
from scripted import ScriptedBackend
from serving import until

from supervisor.gateway import chat, operation

WORDS = ("one ", "two ", "three ")
HELD = Script(tokens=WORDS, hold=True)
STEPPED = Script(tokens=WORDS, stepped=True)
WITHIN_A_SECOND = 1.0


def curl(front: Front, *more: str, path: str = "/stream", **body: Any) -> tuple[str, ...]:
    asked = json.dumps({"message": "count", **body})
    return ("curl", "-sN", "-i", *more, f"{front.url}/api/chat/apollo{path}", "-d", asked)


async def stream_of(front: Front, stream_id: str) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{front.url}/api/stream/status/{stream_id}") as response,
    ):
        told: dict[str, Any] = await response.json()
        return told


async def events_of(front: Front, stream_id: str) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{front.url}/api/stream/events/{stream_id}") as response,
    ):
        return await response.text()


async def wait_alone(front: Front, stream_id: str) -> None:
    """Waits until the gateway has noticed that nobody reads any more."""
    with anyio.fail_after(WITHIN):
        while (await stream_of(front, stream_id))["readers"]:
            pass


def id_in(printed: str) -> str:
    return printed.partition("X-Stream-Id: ")[2].split()[0]


@pytest.mark.parametrize("path", ["/stream", ""], ids=["stream", "whole"])
async def test_before_the_first_token(front: Front, path: str) -> None:
    front.server.use(HELD)
    asked = len(front.server.asked)
    async with program(*curl(front, path=path)):
        front.server.wait_asked(asked + 1)
    front.server.wait_left(WITHIN_A_SECOND)


async def test_before_the_first_token_with_the_status_line_sent(front: Front) -> None:
    front.server.use(HELD)
    async with program(*curl(front)) as client:
        await client.prints('"phase":"prefill"')
    front.server.wait_left(WITHIN_A_SECOND)


async def test_in_the_middle(front: Front) -> None:
    front.server.use(STEPPED)
    async with program(*curl(front)) as client:
        front.server.step()
        await client.prints("one ")
    front.server.wait_left(WITHIN_A_SECOND)


async def test_in_the_middle_of_a_whole_answer(front: Front) -> None:
    front.server.use(STEPPED)
    asked = len(front.server.asked)
    async with program(*curl(front, path="")):
        front.server.wait_asked(asked + 1)
        front.server.step()
    front.server.wait_left(WITHIN_A_SECOND)


async def test_one_of_two_readers_is_nobody_who_leaves(front: Front) -> None:
    front.server.use(STEPPED)
    async with program(*curl(front)) as stays:
        front.server.step()
        await stays.prints("one ")
        async with program("curl", "-sN", f"{front.url}/api/stream/events/{id_in(stays.printed)}") as leaves:
            await leaves.prints("one ")
        front.server.step()
        front.server.step()
        assert "event: complete" in await stays.ends()


async def test_with_resume_the_answer_goes_on(front: Front) -> None:
    front.server.use(STEPPED)
    async with program(*curl(front, resume=True)) as client:
        front.server.step()
        await client.prints("one ")
        stream_id = id_in(client.printed)
    await wait_alone(front, stream_id)
    front.server.step()
    front.server.step()
    with anyio.fail_after(WITHIN):
        told = await events_of(front, stream_id)
    assert "".join(re.findall(r'"token":"([^"]*)","spec', told)) == "".join(WORDS)
    assert told.count("event: complete") == 1
    assert not front.server.asked[-1].gone.is_set()


async def test_by_get_the_answer_goes_on(front: Front) -> None:
    front.server.use(STEPPED)
    asked = len(front.server.asked)
    path = f"{front.chat('apollo')}?message=count"
    async with program("curl", "-sN", "-i", path) as client:
        front.server.step()
        await client.prints("one ")
        stream_id = id_in(client.printed)
        cursor = client.printed.partition("id: ")[2].split()[0]
    await wait_alone(front, stream_id)
    front.server.step()
    front.server.step()
    async with program("curl", "-sN", "-H", f"Last-Event-ID: {cursor}", path) as client:
        told = await client.ends()
    assert "one " not in told.partition("event: complete")[0]
    assert told.endswith("event: done\ndata: \n\n")
    assert len(front.server.asked) == asked + 1


@pytest.mark.parametrize("path", ["/stream", ""], ids=["stream", "whole"])
@pytest.mark.parametrize("at", ["before the first token", "in the middle", "at the end"])
async def test_a_retry_with_its_key_joins_what_was_asked_before(front: Front, path: str, at: str) -> None:
    front.server.use(STEPPED)
    asked = len(front.server.asked)
    line = curl(front, "-H", f"Idempotency-Key: {path} {at}", path=path)
    async with program(*line) as client:
        front.server.wait_asked(asked + 1)
        if at != "before the first token":
            front.server.step()
        if at == "at the end":
            front.server.step()
            front.server.step()
            await client.ends()
    async with program(*line) as client:
        for _ in WORDS:
            front.server.step()
        told = await client.ends()
    assert "one two three " in told
    assert len(front.server.asked) == asked + 1


async def test_a_key_is_for_one_request(front: Front) -> None:
    front.server.use(Script(tokens=WORDS))
    for body, status in (({}, "200"), ({"session_id": "other"}, "422")):
        async with program(*curl(front, "-H", "Idempotency-Key: one request", path="", **body)) as client:
            assert f"HTTP/1.1 {status} " in await client.ends()


@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("POST", {"json": {"message": "count", "resume": True}}),
        ("POST", {"json": {"message": "count"}, "headers": {"Idempotency-Key": "one"}}),
        ("GET", {"params": {"message": "count"}}),
    ],
    ids=["resume", "key", "get"],
)
async def test_whoever_was_to_come_back_and_does_not_ends_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, how: dict[str, Any]
) -> None:
    for module in (chat, operation):
        monkeypatch.setattr(module, "RESUME_GRACE", 0.05)
    backend = ScriptedBackend("one ", asyncio.Event())
    async with gateway(tmp_path, apollo=backend) as served:
        with anyio.fail_after(5):
            async with served.events(method, "/api/chat/apollo/stream", **how) as events:
                await events.until("token")
                stream_id = events.stream_id
            await until(lambda: backend.cut_short == 1)
            async with served.events("GET", f"/api/stream/events/{stream_id}") as events:
                *_, error, done = await events.all()
    assert (error.json["code"], error.json["partial"], done.name) == ("cancelled", "one ", "done")
