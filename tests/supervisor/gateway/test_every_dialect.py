"""What is the same in every dialect: whole answers that are cut short, and how long the first piece took."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import pytest
from gatewaying import ServedGateway, gateway
from scripted import ScriptedBackend
from serving import until

COMPLETION = {"model": "apollo", "messages": [{"role": "user", "content": "hi"}]}
ASKED = [
    ("/api/chat/apollo", {"message": "hi"}),
    ("/api/team-chat", {"message": "hi"}),
    ("/v1/chat/completions", COMPLETION),
]


async def drained(served: ServedGateway) -> None:
    await served.house.drain(0.0)


async def cancelled(served: ServedGateway) -> None:
    [stream_id] = served.house.streams._runs
    told = await served.request("DELETE", f"/api/stream/{stream_id}")
    assert told[1]["cancelled"]


@pytest.mark.parametrize(("path", "body"), ASKED)
@pytest.mark.parametrize(("by", "code"), [(drained, "gateway_restarted"), (cancelled, "cancelled")])
async def test_a_whole_answer_that_is_cut_short_says_by_what(
    tmp_path: Path, path: str, body: dict[str, Any], by: Any, code: str
) -> None:
    backend = ScriptedBackend("Hel", asyncio.Event())
    async with gateway(tmp_path, apollo=backend) as served:
        with anyio.fail_after(5):
            async with asyncio.TaskGroup() as group:
                asked = group.create_task(served.request("POST", path, json=body))
                await until(lambda: backend.under_way)
                await by(served)
    status, told, response = asked.result()
    said = told["error"] if isinstance(told["error"], dict) else told
    assert (status, said["code"], response.headers["Retry-After"]) == (503, code, "1")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_the_first_piece_of_every_answer_is_timed(
    tmp_path: Path, path: str, body: dict[str, Any], stream: bool
) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("Hel", "lo")) as served:
        with anyio.fail_after(5):
            assert (await served.request("POST", path, json=body | {"stream": stream}))[0] == 200
            figures = await served.get("/metrics")
    assert "chorus_gateway_first_token_seconds_count 1\n" in figures
