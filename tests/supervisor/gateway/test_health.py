"""Whether the gateway serves, whether anybody answers, and the figures of both."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import anyio
import pytest
from gatewaying import ServedGateway, gateway, gateway_of
from scripted import EchoBackend, ScriptedBackend
from serving import until
from team import Team

from protocol.codec import decode_reply
from protocol.messages import HealthResponse
from supervisor.gateway import health


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with Team.start(tmp_path_factory.mktemp("team"), roster=["apollo", "metis"]) as started:
        yield started


async def test_health_is_what_a_specialist_says_of_itself(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            async with served.session.get(served.url + "/health") as response:
                line = await response.read()
            assert response.headers["Content-Length"]
            told = decode_reply(line)
            assert isinstance(told, HealthResponse)
            assert (told.ai_id, told.status, told.in_flight) == ("gateway", "healthy", 0)
            assert told.instance == served.house.instance
            assert told.backend.kind == "gateway"
            assert told.rss_bytes
            as_json = await served.get("/health")
            assert as_json["team"] == {"total": 1, "answering": 1, "told": False}
            served.house.is_draining = True
            assert (await served.get("/health"))["status"] == "draining"


async def test_ready_is_for_whoever_sends_questions(team: Team, tmp_path: Path) -> None:
    async with gateway_of(team) as served:
        with anyio.fail_after(20):
            assert await served.get("/ready") == {"status": "ready", "answering": ["apollo-ai", "metis-ai"]}
            await served.post("/api/specialists/apollo/stop")
            assert (await served.get("/ready"))["answering"] == ["metis-ai"]
            await served.post("/api/specialists/metis/stop")
            assert await refused(served) == "no specialist is ready: chorus status says why"
            for name in ("apollo", "metis"):
                await served.post(f"/api/specialists/{name}/start")
            assert (await served.get("/ready"))["status"] == "ready"
            served.house.is_draining = True
            assert await refused(served) == "the gateway is going down: ask again"
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        assert await refused(served) == "no supervisor tells of the team: chorus up"


async def refused(served: ServedGateway) -> str:
    status, told, response = await served.request("GET", "/ready")
    assert (status, response.content_type) == (503, "application/problem+json")
    assert int(response.headers["Retry-After"]) > 0
    sentence: str = told["error"]
    return sentence


async def test_head_is_get_without_a_body_and_streams_have_none(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            for path in ("/health", "/api/specialists", "/openapi.json"):
                async with served.session.head(served.url + path) as response:
                    assert (response.status, await response.read()) == (200, b"")
                    assert int(response.headers["Content-Length"]) > 0
            for path in ("/api/events", "/api/chat/apollo/stream?message=x", "/api/specialists/apollo/logs"):
                async with served.session.head(served.url + path) as response:
                    assert response.status == 405


async def test_a_method_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            for method in ("DELETE", "OPTIONS", "PATCH"):
                status, told, response = await served.request(method, "/api/orchestration")
                assert (status, told["code"]) == (405, "method_not_allowed")
                assert response.headers["Allow"] == "GET,HEAD,PUT"
                assert not [name for name in response.headers if name.startswith("Access-Control")]


# -- figures ------------------------------------------------------------------------------------------------------

SAMPLE = re.compile(r'([a-z_]+)((?:\{[a-z]+="[^"\n]*"(?:,[a-z]+="[^"\n]*")*\})?) ([0-9.e+-]+)')


async def figures(served: ServedGateway) -> dict[str, float]:
    async with served.session.get(served.url + "/metrics") as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = await response.text()
    found: dict[str, float] = {}
    described: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# "):
            described.add(line.split()[2])
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample, line
        assert re.sub("_(bucket|sum|count)$", "", sample[1]) in described
        assert sample[1] + sample[2] not in found
        found[sample[1] + sample[2]] = float(sample[3])
    return found


async def test_requests_are_counted_by_route_and_status_and_nothing_else(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            await served.post("/api/chat/apollo", message="x")
            for path in ("/api/chat/a", "/api/chat/b", "/anything", "/" + "x" * 500):
                await served.request("POST", path, json={"message": "x"})
            await served.request("PROPFIND", "/health")
            told = await figures(served)
    requests = {key: count for key, count in told.items() if "requests_total" in key}
    assert requests == {
        'chorus_gateway_requests_total{method="POST",route="/api/chat/{id}",status="200"}': 1,
        'chorus_gateway_requests_total{method="POST",route="/api/chat/{id}",status="404"}': 2,
        'chorus_gateway_requests_total{method="POST",route="other",status="404"}': 2,
        'chorus_gateway_requests_total{method="other",route="other",status="405"}': 1,
    }


async def test_streams_are_counted_with_what_was_sent(tmp_path: Path) -> None:
    wait = asyncio.Event()
    async with gateway(tmp_path, apollo=ScriptedBackend("Hel", wait, "lo")) as served:
        with anyio.fail_after(5):
            async with served.events("POST", "/api/chat/apollo/stream", json={"message": "x"}) as events:
                await events.until("token")
                told = await figures(served)
                assert (told["chorus_gateway_streams"], told["chorus_gateway_readers"]) == (1, 1)
                assert told["chorus_gateway_events_sent_total"] == 1
                assert told["chorus_gateway_requests_in_flight"] == 2
                assert told["chorus_gateway_first_token_seconds_count"] == 1
                wait.set()
                await events.all()
            await until(lambda: served.house.beat.readers == 0)
            told = await figures(served)
    assert (told["chorus_gateway_streams"], told["chorus_gateway_readers"]) == (0, 0)
    assert told["chorus_gateway_events_sent_total"] == 4
    assert told["chorus_gateway_sent_bytes_total"] > 500
    assert told["chorus_gateway_requests_in_flight"] == 1
    assert told['chorus_gateway_first_token_seconds_bucket{le="+Inf"}'] == 1
    assert told['chorus_gateway_requests_total{method="POST",route="/api/chat/{id}/stream",status="200"}'] == 1


async def test_a_caller_who_leaves_is_counted_too(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend(asyncio.Event())) as served:
        with anyio.fail_after(5):
            with anyio.move_on_after(0.1):
                await served.post("/api/chat/apollo", message="x")
            await until(lambda: served.house.requests.under_way == 0)
            told = await figures(served)
    assert told['chorus_gateway_requests_total{method="POST",route="/api/chat/{id}",status="499"}'] == 1


async def test_the_team_is_counted_by_state(team: Team) -> None:
    async with gateway_of(team) as served:
        told = await figures(served)
    assert told["chorus_supervisor_up"] == 1
    assert told['chorus_specialists{state="ready"}'] == 2
    assert told['chorus_specialists{state="failed"}'] == 0
    assert told['chorus_specialist_restarts_total{specialist="apollo"}'] == 0
    assert told["process_resident_memory_bytes"] > 10_000_000
    assert told["process_cpu_seconds_total"] > 0


async def test_a_connection_that_breaks_is_no_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise ConnectionResetError("gone")

    monkeypatch.setattr(health, "how_it_is", broken)
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await served.get("/health")
            told = await figures(served)
    assert told['chorus_gateway_requests_total{method="GET",route="/health",status="499"}'] >= 1
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
