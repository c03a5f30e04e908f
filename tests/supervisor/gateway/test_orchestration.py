"""The orchestration rules over HTTP, and questions that name nobody."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from gatewaying import ServedGateway, gateway, gateway_of
from scripted import EchoBackend, ScriptedBackend
from serving import until
from team import Team

from protocol.errors import BackendDown, BadRequest, ModelError
from protocol.messages import Heartbeat, StreamChunk, StreamStatus
from supervisor.gateway import attempts
from supervisor.team.routing import Orchestration, RetryPolicy, Rule, TimeoutSettings

ROSTER = ["apollo", "athena", "metis"]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with Team.start(tmp_path_factory.mktemp("team"), roster=ROSTER) as started:
        yield started


# -- reading and writing ------------------------------------------------------------------------------------------


async def put(served: ServedGateway, rules: Any) -> tuple[int, Any]:
    status, told, _ = await served.request("PUT", "/api/orchestration", json=rules)
    return status, told


async def test_rules_are_put_read_and_in_force_for_everybody_at_once(team: Team) -> None:
    rules = {
        "routing_rules": [{"pattern": "planning", "specialists": ["metis-ai"], "strategy": "round-robin"}],
        "timeout_settings": {"default": 30.0, "per_specialist": {"metis-ai": 60.0}},
        "retry_policy": {"enabled": True, "max_attempts": 2},
    }
    async with gateway_of(team) as served, gateway_of(team) as other:
        with anyio.fail_after(20):
            assert (await served.get("/api/orchestration"))["routing_rules"] == []
            assert await put(served, rules) == (200, rules)
            assert await other.get("/api/orchestration") == rules
            told = await other.post("/api/chat", message="planning a week")
            assert told["ai_id"] == "metis-ci"
            asked = await anyio.to_thread.run_sync(team.run, "ask", "planning a week")
            assert asked.stderr.startswith("metis answers: rule 1 (planning)")
            status, told = await put(served, {})
            assert (status, told["routing_rules"]) == (200, [])


async def test_rules_with_mistakes_are_refused_with_all_of_them(team: Team) -> None:
    wrong = {"routing_rules": [{"pattern": "(", "specialists": ["metiss"], "strategy": "any"}], "retry_policy": 3}
    async with gateway_of(team) as served:
        with anyio.fail_after(10):
            status, told = await put(served, wrong)
            assert (status, told["code"]) == (422, "bad_request")
            assert {one["path"]: one["got"] for one in told["errors"]} == {
                "routing_rules[0].pattern": '"("',
                "routing_rules[0].specialists[0]": '"metiss"',
                "routing_rules[0].strategy": '"any"',
                "retry_policy": "3",
            }
            assert all(one["expected"] for one in told["errors"])
            assert await put(served, []) == await put(served, "rules")
            assert (await put(served, []))[0] == 422
            status, told, _ = await served.request("PUT", "/api/orchestration", data=b"{")
            assert (status, told["code"]) == (400, "bad_json")
            assert (await served.get("/api/orchestration"))["routing_rules"] == []


async def test_without_a_supervisor_rules_are_read_and_not_written(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            assert (await served.get("/api/orchestration"))["retry_policy"] == {"enabled": False, "max_attempts": 3}
            assert (await put(served, {}))[0] == 503


# -- asking -------------------------------------------------------------------------------------------------------


def with_rules(served: ServedGateway, *rules: Rule, apollo_within: float | None = None, attempts: int = 1) -> None:
    retry = RetryPolicy(enabled=attempts > 1, max_attempts=attempts)
    own = {"Apollo-AI": apollo_within} if apollo_within is not None else {}
    served.house.rulebook.write(Orchestration([*rules], TimeoutSettings(None, own), retry))


async def test_without_rules_the_best_answers_and_it_is_said_why(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend(), metis=EchoBackend()) as served:
        with anyio.fail_after(5):
            told = await served.post("/api/chat", message="hello")
    assert told["type"] == "chat_response"
    assert (told["ai_id"], told["content"]) == ("apollo-ci", "hello ")
    assert told["context"]["routed"] == ["apollo-ai"]
    assert told["context"]["routed_by"] == {
        "why": "there are no rules: the best of all who answer",
        "strategy": "best",
    }


async def test_the_answer_can_be_had_as_it_comes(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend(), metis=EchoBackend()) as served:
        with_rules(served, Rule("plan", ["metis"]))
        with anyio.fail_after(5):
            async with served.events("POST", "/api/chat", json={"message": "a plan", "stream": True}) as events:
                *tokens, complete, done = await events.all()
    assert [event.json["specialist_id"] for event in tokens] == ["metis-ai", "metis-ai"]
    assert complete.json["summary"]["context"]["routed_by"]["rule"] == 1
    assert done.name == "done"


async def test_turns_are_taken(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend(), metis=EchoBackend()) as served:
        with_rules(served, Rule(".", ["metis", "apollo"], "round-robin"))
        with anyio.fail_after(5):
            told = [(await served.post("/api/chat", message="x"))["ai_id"] for _ in range(4)]
    assert told == ["metis-ci", "apollo-ci"] * 2


async def test_what_is_under_way_from_here_counts_before_anybody_tells_of_it(tmp_path: Path) -> None:
    wait = asyncio.Event()
    backends = {name: ScriptedBackend(wait, "x") for name in ROSTER}
    async with gateway(tmp_path, **backends) as served:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                for _ in range(6):
                    group.start_soon(lambda: served.post("/api/chat", message="x"))
                await until(lambda: sum(backend.under_way for backend in backends.values()) == 6)
                assert [backend.under_way for backend in backends.values()] == [2, 2, 2]
                wait.set()


async def test_a_rule_for_all_has_one_text_of_their_answers_under_their_names(tmp_path: Path) -> None:
    wait = asyncio.Event()
    broken = ScriptedBackend(ModelError("it broke"))
    team = {"apollo": ScriptedBackend(wait, "second"), "metis": EchoBackend(), "athena": broken}
    async with gateway(tmp_path, **team) as served:
        with_rules(served, Rule("plan", ROSTER, "all"))
        with anyio.fail_after(5):
            async with served.events("POST", "/api/chat", json={"message": "a plan", "stream": True}) as events:
                tokens = []
                async for event in events:
                    tokens.append(event.json)
                    if event.json["content"] == "plan ":
                        break
                wait.set()
                *rest, complete, _ = await events.all()
            told = await served.post("/api/chat", message="a plan")
    tokens += [event.json for event in rest]
    text = "## metis\n\na plan \n\n## apollo\n\nsecond\n\n## Not answered\n\n- athena: it broke\n"
    assert "".join(token["content"] for token in tokens) == complete.json["content"] == text
    assert {token["specialist_id"] for token in tokens} == {"metis-ai", "apollo-ai", "team"}
    context = complete.json["summary"]["context"]
    assert set(context["routed"]) == {"metis-ai", "apollo-ai"}
    assert context["failed"] == {"athena-ai": "it broke"}
    assert context["routed_by"]["strategy"] == "all"
    assert told["ai_id"] == "team"
    assert "usage" not in told  # not everybody was counted
    assert told["content"].count("## ") == 3


async def test_where_nobody_of_all_answers_it_is_an_error(tmp_path: Path) -> None:
    team = {name: ScriptedBackend(BackendDown("no model server")) for name in ROSTER}
    async with gateway(tmp_path, **team) as served:
        with_rules(served, Rule(".", ROSTER, "all"))
        with anyio.fail_after(5):
            status, told, _ = await served.request("POST", "/api/chat", json={"message": "x"})
    assert (status, told["code"]) == (502, "backend_down")
    assert told["error"].startswith(f"nobody of {len(ROSTER)} answered: ")
    assert told["error"].endswith(": no model server")


async def test_one_that_fails_before_its_first_token_is_replaced_by_the_next_best(tmp_path: Path) -> None:
    team = {"apollo": ScriptedBackend(BackendDown("no model server")), "metis": EchoBackend()}
    async with gateway(tmp_path, **team) as served:
        with_rules(served, attempts=2)
        with anyio.fail_after(5):
            told = await served.post("/api/chat", message="x")
            assert told["ai_id"] == "metis-ci"
            assert told["context"]["routed_by"]["attempts"] == 2
            with_rules(served)
            status, refused, _ = await served.request("POST", "/api/chat", json={"message": "x"})
            assert (status, refused["code"]) == (502, "backend_down")


async def test_one_that_is_alone_is_asked_again(tmp_path: Path) -> None:
    answers = [[BackendDown("no model server")], [BackendDown("no model server")], ["at last"]]
    backend = ScriptedBackend(answer=lambda _: answers.pop(0))
    async with gateway(tmp_path, apollo=backend) as served:
        with_rules(served, attempts=3)
        with anyio.fail_after(5):
            told = await served.post("/api/chat", message="x")
    assert (told["content"], told["context"]["routed_by"]["attempts"]) == ("at last", 3)


async def test_nobody_is_asked_again_once_a_token_was_said_or_where_the_question_is_wrong(tmp_path: Path) -> None:
    for script in (["Hel", ModelError("it broke")], [BadRequest("no such option")]):
        backend = ScriptedBackend(*script)
        async with gateway(tmp_path / str(len(script)), apollo=backend, metis=EchoBackend()) as served:
            with_rules(served, attempts=3)
            with anyio.fail_after(5):
                status, _, _ = await served.request("POST", "/api/chat", json={"message": "x"})
        assert status in (422, 502)
        assert len(backend.prompts) == 1


async def test_one_that_is_silent_for_longer_than_the_rules_allow_is_given_up(tmp_path: Path) -> None:
    silent = ScriptedBackend(asyncio.Event())
    async with gateway(tmp_path, apollo=silent, metis=EchoBackend()) as served:
        with_rules(served, apollo_within=0.05, attempts=2)
        with anyio.fail_after(5):
            told = await served.post("/api/chat", message="x")
            assert told["ai_id"] == "metis-ci"
            assert silent.cut_short == 1
            with_rules(served, Rule(".", ["apollo"]), apollo_within=0.05)
            status, refused, _ = await served.request("POST", "/api/chat", json={"message": "x"})
    assert (status, refused["code"]) == (504, "stalled")
    assert "silent for 0.05 s" in refused["error"]


async def test_the_time_stands_still_while_a_model_is_loaded() -> None:
    """And a heartbeat does not stop it: a process that lives need not be one whose answer grows."""
    listening = attempts.Listening("apollo", 60.0)
    with listening.patience():
        ends = [anyio.current_effective_deadline()]
        for reply in (
            Heartbeat(),
            StreamStatus(phase="loading"),
            Heartbeat(),
            StreamStatus(phase="prefill"),
            StreamChunk(chunk_index=0, thinking="hm"),
        ):
            listening.hear(reply)
            ends.append(anyio.current_effective_deadline())
    assert ends[0] == ends[1] < ends[4] <= ends[5] < ends[2] == ends[3] == math.inf
    assert listening.spoke


async def test_nobody_ready_is_a_503_with_the_time_to_wait(tmp_path: Path) -> None:
    async with gateway(tmp_path) as served:
        with anyio.fail_after(5):
            status, told, response = await served.request("POST", "/api/chat", json={"message": "x"})
    assert (status, told["code"]) == (503, "unavailable")
    assert int(response.headers["Retry-After"]) >= 1


# -- by OpenAI's protocol -----------------------------------------------------------------------------------------


async def completed(served: ServedGateway, text: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    told: dict[str, Any] = await served.post("/v1/chat/completions", model="auto", messages=messages)
    return told


async def test_auto_is_whoever_the_rules_choose(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("apollo's"), metis=ScriptedBackend("metis's")) as served:
        with_rules(served, Rule("plan", ["metis"]), Rule("all", ["apollo", "metis"], "all"))
        with anyio.fail_after(5):
            one = await completed(served, "a plan")
            everybody = await completed(served, "you all")
    assert (one["model"], one["choices"][0]["message"]["content"]) == ("auto", "metis's")
    assert sorted(everybody["choices"][0]["message"]["content"].split("\n\n")) == [
        "",
        "## apollo",
        "## metis",
        "apollo's",
        "metis's",
    ]


async def test_where_autos_choice_fails_before_its_first_token_the_next_best_is_asked(tmp_path: Path) -> None:
    down, silent = ScriptedBackend(BackendDown("no model server")), ScriptedBackend(asyncio.Event())
    async with gateway(tmp_path, apollo=down, metis=EchoBackend()) as served:
        with_rules(served, attempts=2)
        with anyio.fail_after(5):
            assert (await completed(served, "hi"))["choices"][0]["message"]["content"] == "hi "
    assert len(down.prompts) == 1
    async with gateway(tmp_path / "silent", apollo=silent, metis=EchoBackend()) as served:
        with_rules(served, apollo_within=0.05, attempts=2)
        with anyio.fail_after(5):
            assert (await completed(served, "hi"))["choices"][0]["message"]["content"] == "hi "
    assert silent.cut_short == 1


async def test_auto_asks_nobody_else_once_a_token_was_said(tmp_path: Path) -> None:
    broken, other = ScriptedBackend("Hel", ModelError("it broke")), EchoBackend()
    async with gateway(tmp_path, apollo=broken, metis=other) as served:
        with_rules(served, attempts=2)
        with anyio.fail_after(5):
            body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
            status, told, _ = await served.request("POST", "/v1/chat/completions", json=body)
    assert (status, told["error"]["code"], other.prompts) == (502, "model_error", [])


async def test_a_team_chat_has_the_patience_of_the_rules_where_it_says_nothing_else(tmp_path: Path) -> None:
    silent = ScriptedBackend("Hel", asyncio.Event())
    async with gateway(tmp_path, apollo=silent, metis=EchoBackend()) as served:
        with_rules(served, apollo_within=0.05)
        with anyio.fail_after(10):
            told = await served.post("/api/team-chat", message="x")
            assert [one["specialist_id"] for one in told["timed_out"]] == ["apollo-ai"]
            assert "silent for 0.05 s" in told["timed_out"][0]["error"]["error"]
            assert list(told["responses_by_id"]) == ["metis-ai"]
            with anyio.move_on_after(0.3) as patience:
                await served.post("/api/team-chat", message="x", timeout=60)
            assert patience.cancelled_caught
