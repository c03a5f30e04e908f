"""The team over HTTP, and what an operator does with one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from gatewaying import gateway, gateway_of
from scripted import EchoBackend
from team import Team

ROSTER = ["apollo", "tekton_core"]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """One team for all: every test leaves it as it was."""
    with Team.start(tmp_path_factory.mktemp("team"), roster=ROSTER) as started:
        yield started


async def test_everybody_is_told_by_the_fields_of_the_status(team: Team) -> None:
    async with gateway_of(team) as served:
        told = await served.get("/api/specialists")
        assert [one["id"] for one in told["specialists"]] == ["apollo-ai", "tekton_core-ai"]
        assert told["note"] is None
        assert told["supervisor"]["state"] == "running"
        by_the_command = team.status()["specialists"]
        for one, other in zip(told["specialists"], by_the_command, strict=True):
            assert one["specialist_id"] == one["id"]
            assert other.keys() <= one.keys()
            for field in ("name", "ai_id", "port", "pid", "state", "model", "backend", "description"):
                assert one[field] == other[field]


async def test_one_of_them_says_who_it_is(team: Team) -> None:
    async with gateway_of(team) as served:
        told = await served.get("/api/specialists/Tekton-CI")
    assert told["id"] == "tekton_core-ai"
    assert told["info"]["component"] == "tekton_core"
    assert told["info"]["system_prompt"]
    assert told["info"]["limits"]
    assert told["info_error"] is None


async def test_a_stranger_is_answered_with_near_names(team: Team) -> None:
    async with gateway_of(team) as served:
        for method, path in [("GET", ""), ("GET", "/logs"), ("POST", "/stop")]:
            for name in ("apolo", "*", "all", "gateway"):
                status, told, _ = await served.request(method, f"/api/specialists/{name}{path}")
                assert status == 404, told
        _, told, _ = await served.request("GET", "/api/specialists/apolo")
        assert "did you mean apollo" in told["error"]


async def test_commands_are_carried_out_and_say_what_became_of_them(team: Team) -> None:
    async with gateway_of(team) as served:

        async def state() -> str:
            found: str = (await served.get("/api/specialists/apollo"))["state"]
            return found

        before = (await served.get("/api/specialists/apollo"))["pid"]
        with anyio.fail_after(30):
            told = await served.post("/api/specialists/apollo-ai/restart")
            assert told["old_pid"] == before
            assert told["new_pid"] not in (None, before)
            assert told["down_ms"] is not None
            assert (told["name"], told["specialist_id"], told["command"]) == ("apollo", "apollo-ai", "restart")

            assert (await served.post("/api/specialists/apollo/drain"))["command"] == "drain"
            assert await state() == "draining"
            status, refused, response = await served.request("POST", "/api/chat/apollo", json={"message": "hi"})
            assert (status, refused["code"]) == (503, "unavailable")
            assert response.headers["Retry-After"]

            assert (await served.post("/api/specialists/apollo/stop"))["new_pid"] is None
            assert await state() == "stopped"
            detail = await served.get("/api/specialists/apollo")
            assert (detail["info"], detail["info_error"]) == (
                None,
                "apollo does not answer: it is stopped: chorus start apollo",
            )
            status, refused, _ = await served.request("POST", "/api/specialists/apollo/drain")
            assert (status, refused["code"]) == (409, "conflict")
            assert refused["error"] == "apollo: apollo is not running"

            assert (await served.post("/api/specialists/apollo/start?wait=true"))["new_pid"] is not None
            assert await state() == "ready"


async def test_without_a_supervisor_the_team_is_told_as_it_was_known(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(10):
            told = await served.get("/api/specialists")
            assert [one["id"] for one in told["specialists"]] == ["apollo-ai"]
            assert told["supervisor"] is None
            assert "no supervisor answers" in told["note"]
            detail = await served.get("/api/specialists/apollo")
            assert detail["info"]["component"] == "apollo"
            assert detail["note"] == told["note"]
            status, refused, response = await served.request("POST", "/api/specialists/apollo/stop")
    assert status == 503
    assert refused["error"].endswith("chorus up")
    assert response.headers["Retry-After"] == "1"
