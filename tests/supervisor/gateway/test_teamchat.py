"""Everybody asked at once over HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import requests
from gatewaying import Event, ServedGateway, gateway
from msgspec.structs import replace
from scripted import EchoBackend, ScriptedBackend
from seed_clients import SSEClient, receive, received
from serving import until

from daemon.backends import Waiting
from protocol.errors import BackendDown, ModelError
from supervisor.gateway import teamsockets
from supervisor.gateway.teamevents import VOCABULARY

PATH = "/api/team-chat"


def now(served: ServedGateway, **states: str) -> None:
    """As the supervisor would tell of them."""
    for name, state in states.items():
        specialists = served.house.team._specialists
        specialists[name] = replace(specialists[name], state=state)


def of(events: list[Event], name: str) -> list[dict[str, Any]]:
    return [event.json for event in events if event.name == name]


# -- the whole answer ---------------------------------------------------------------------------------------------------------


async def test_the_originals_own_test_of_team_chat(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend(), athena=EchoBackend()) as served:

        def ask() -> requests.Response:
            response = requests.post(f"{served.url}/api/team-chat", json={"message": "What should we optimize?"})
            assert len(response.json()["responses"]) > 0
            return response

        with anyio.fail_after(10):
            told = (await anyio.to_thread.run_sync(ask)).json()
    assert told["responses_by_id"] == dict.fromkeys(("apollo-ai", "athena-ai"), "What should we optimize? ")


async def test_whoever_wants_the_originals_dictionary_is_given_it(tmp_path: Path) -> None:
    accept = {"Accept": "application/vnd.chorus.v0+json"}
    async with gateway(tmp_path, apollo=ScriptedBackend("Yes.")) as served:
        with anyio.fail_after(5):
            _, told, response = await served.request("POST", PATH, json={"message": "?"}, headers=accept)
    assert told["responses"] == {"apollo-ai": "Yes."}
    assert response.content_type == "application/vnd.chorus.v0+json"


async def test_answers_stand_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    wait = asyncio.Event()
    async with gateway(tmp_path, apollo=ScriptedBackend(wait, "late"), metis=ScriptedBackend("early")) as served:
        with anyio.fail_after(5):
            async with served.events("POST", PATH + "/stream", json={"message": "?"}) as events:
                await events.until("message")
                wait.set()
                [complete] = of(await events.until("complete"), "complete")
    told = complete["result"]
    assert [entry["specialist_id"] for entry in told["responses"]] == ["metis-ai", "apollo-ai"]
    first = told["responses"][0]
    assert (first["socket_id"], first["content"], first["done_reason"]) == ("metis-ci", "early", "stop")
    assert first["error"] is None
    assert first["timing"]["total_ms"] > 0
    assert first["usage"]["completion_tokens"] == 2
    assert (told["timed_out"], told["failed"]) == ([], [])
    assert (told["synthesis"], told["consensus"], told["moderation"]) == (None, None, None)
    assert told["elapsed_time"] >= 0
    assert told["request_id"]


async def test_nothing_that_arrived_is_lost(tmp_path: Path) -> None:
    team = {
        "apollo": ScriptedBackend("whole"),
        "metis": ScriptedBackend("half", asyncio.Event()),
        "numa": ScriptedBackend("some", ModelError("it broke")),
    }
    async with gateway(tmp_path, **team) as served:
        with anyio.fail_after(5):
            told = await served.post(PATH, message="?", timeout=0.3)
    assert told["responses_by_id"] == {"apollo-ai": "whole"}
    [late], [failed] = told["timed_out"], told["failed"]
    assert (late["content"], late["done_reason"], late["error"]["code"]) == ("half", "cancelled", "stalled")
    assert (failed["content"], failed["error"]) == ("some", {"code": "model_error", "error": "it broke"})


async def test_where_all_of_them_fail_it_is_still_an_answer(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend(BackendDown("it is not running"))) as served:
        with anyio.fail_after(5):
            told = await served.post(PATH, message="?")
    assert told["responses"] == []
    assert told["failed"][0]["error"]["code"] == "backend_down"


# -- who is asked -------------------------------------------------------------------------------------------------------------


async def test_those_named_are_asked_and_called_as_they_were_spelt(tmp_path: Path) -> None:
    others = EchoBackend()
    async with gateway(tmp_path, apollo=EchoBackend(), metis=others, tekton_core=EchoBackend()) as served:
        with anyio.fail_after(5):
            told = await served.post(PATH, content="?", specialists=["Tekton-AI", "apollo-ci", "tekton"])
    assert set(told["responses_by_id"]) == {"Tekton-AI", "apollo-ci"}
    assert others.prompts == []


async def test_one_that_is_known_to_be_stopped_is_an_entry_that_failed(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend(), metis=EchoBackend()) as served:
        now(served, metis="stopped")
        with anyio.fail_after(5):
            named = await served.post(PATH, message="?", specialists=["apollo", "metis"])
            everybody = await served.post(PATH, message="?")
    [failed] = named["failed"]
    assert (failed["specialist_id"], failed["error"]["code"]) == ("metis", "unavailable")
    assert "chorus start metis" in failed["error"]["error"]
    assert (len(everybody["responses"]), everybody["failed"]) == (1, [])


async def test_where_nobody_can_be_asked_it_is_said_when_to_come_again(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        now(served, apollo="failed")
        with anyio.fail_after(5):
            for body in ({"message": "?"}, {"message": "?", "specialists": ["apollo"]}):
                for path in (PATH, PATH + "/stream"):
                    status, told, response = await served.request("POST", path, json=body)
                    assert (status, told["code"], response.headers["Retry-After"]) == (503, "unavailable", "1")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"message": "?", "specialists": ["apolo"]}, 404, "did you mean apollo?"),
        ({"message": "?", "specialists": []}, 422, "specialists: names nobody"),
        ({"specialists": ["apollo"]}, 422, "message: missing"),
        ({"message": "?", "moderation_mode": "directed"}, 422, "target_sockets: missing"),
        ({"message": "?", "moderation_mode": "loud"}, 422, "moderation_mode: "),
        ({"message": "?", "timeout": 0}, 422, "timeout: "),
        ({"message": "?", "moderation_mode": "synthesis", "synthesizer": "apolo"}, 404, "did you mean apollo?"),
        ({"message": "?", "moderation_mode": "synthesis", "synthesizer": "metis"}, 503, "metis does not answer"),
    ],
)
async def test_what_cannot_be_asked_is_refused(tmp_path: Path, body: dict[str, Any], status: int, said: str) -> None:
    async with gateway(tmp_path, apollo=EchoBackend(), metis=EchoBackend()) as served:
        now(served, metis="stopped")
        with anyio.fail_after(5):
            got, told, _ = await served.request("POST", PATH, json=body)
    assert got == status
    assert said in told["error"]


async def test_directed_asks_its_targets_alone(tmp_path: Path) -> None:
    others = EchoBackend()
    async with gateway(tmp_path, apollo=EchoBackend(), metis=others) as served:
        with anyio.fail_after(5):
            told = await served.post(PATH, message="?", moderation_mode="directed", target_sockets=["apollo-ci"])
    assert list(told["responses_by_id"]) == ["apollo-ci"]
    assert others.prompts == []


async def test_everything_of_a_chat_reaches_each_of_them(tmp_path: Path) -> None:
    backend = EchoBackend()
    body = {
        "session_id": "s",
        "context": {"memory_hints": ["owls"]},
        "history": [{"role": "user", "content": "before"}],
        "options": {"seed": 3},
        "max_tokens": 9,
    }
    async with gateway(tmp_path, apollo=backend) as served:
        with anyio.fail_after(5):
            await served.post(PATH, message="now", **body)
    [prompt] = backend.prompts
    assert [turn.content for turn in prompt.turns] == ["before", "Context: owls\n\nnow"]
    assert (prompt.options.seed, prompt.options.max_tokens) == (3, 9)


# -- moderation ---------------------------------------------------------------------------------------------------------------


async def test_a_synthesis_is_made_by_synthesis_where_it_is_there(tmp_path: Path) -> None:
    synthesis = ScriptedBackend(
        answer=lambda prompt: ["All ", "agree."] if "quoted above" in prompt.turns[-1].content else ["Hm."]
    )
    async with gateway(tmp_path, apollo=ScriptedBackend("Yes."), synthesis=synthesis) as served:
        with anyio.fail_after(5):
            body = {"message": "Shall we?", "moderation_mode": "synthesis"}
            async with served.events("POST", PATH + "/stream", json=body) as events:
                said = await events.all()
    tokens = [token for token in of(said, "token") if token.get("phase") == "synthesis"]
    assert [(token["specialist_id"], token["token"]) for token in tokens] == [
        ("synthesis-ai", "All "),
        ("synthesis-ai", "agree."),
    ]
    [complete] = of(said, "complete")
    assert complete["result"]["synthesis"] == "All agree."
    so_far = VOCABULARY.fold((event.name, event.data.encode()) for event in said)
    assert (so_far.responses_by_id, so_far.moderated) == (
        {"apollo-ai": "Yes.", "synthesis-ai": "Hm."},
        "All agree.",
    )
    assert complete["result"]["moderation"]["specialist_id"] == "synthesis-ai"
    assert [(one["stage"], one["percentage"]) for one in of(said, "progress")] == [
        ("processing", 33),
        ("processing", 66),
        ("finalizing", 66),
    ]


async def test_a_consensus_is_in_the_moderators_words(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("Yes."), rhetor=ScriptedBackend("Agreement: full")) as served:
        with anyio.fail_after(5):
            body = {"specialists": ["apollo"], "moderation_mode": "consensus", "synthesizer": "Rhetor-AI"}
            told = await served.post(PATH, message="?", **body)
    assert told["consensus"] == {"text": "Agreement: full", "by": "Rhetor-AI"}
    assert (told["synthesis"], list(told["responses_by_id"])) == (None, ["apollo"])


async def test_the_usual_moderator_need_not_be_among_those_asked(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("Yes."), synthesis=ScriptedBackend("One.")) as served:
        with anyio.fail_after(5):
            told = await served.post(PATH, message="?", specialists=["apollo"], moderation_mode="synthesis")
    assert (told["synthesis"], told["moderation"]["specialist_id"]) == ("One.", "synthesis-ai")


# -- live ---------------------------------------------------------------------------------------------------------------------


async def test_a_stream_has_the_events_and_fields_of_the_originals(tmp_path: Path) -> None:
    loading = ScriptedBackend(Waiting("loading"), "Hel", "lo")
    async with gateway(tmp_path, athena=loading) as served:
        with anyio.fail_after(5):
            async with served.events("POST", PATH + "/stream", json={"message": "hi"}) as events:
                stream_id, said = events.stream_id, await events.all()
    assert [event.name for event in said] == [
        "connected",
        "status",
        "token",
        "token",
        "message",
        "progress",
        "complete",
        "done",
    ]
    connected, status, token, second, message, progress, complete, _ = [event.json for event in said]
    assert (connected["specialists"], connected["stream_id"]) == (["athena-ai"], stream_id)
    assert status["phase"] == "loading"
    assert token["data"]["token"] == token["token"] == token["content"] == "Hel"
    assert (token["specialist_id"], token["metadata"]) == ("athena-ai", {"chunk_index": 0})
    assert second["metadata"] == {"chunk_index": 1}
    assert "phase" not in token
    assert (message["speaker"], message["content"], message["round"]) == ("athena-ai", "Hello", 1)
    assert (progress["percentage"], progress["message"]) == (100, "1 of 1 have ended")
    assert complete["result"]["responses_by_id"] == {"athena-ai": "Hello"}
    assert complete["execution_time"] >= 0
    assert complete["timestamp"] > 0


async def test_the_originals_readers_understand_it(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend(), athena=EchoBackend()) as served:
        with anyio.fail_after(5):
            url, body = served.url + PATH + "/stream", {"message": "hi"}
            messages = [one async for one in received(url, body) if "speaker" in one]
            tokens = [one async for one in receive(SSEClient(url), body)]
    assert {one["speaker"]: one["content"] for one in messages} == {"apollo-ai": "hi ", "athena-ai": "hi "}
    assert tokens == ["hi ", "hi "]


async def test_event_source_asks_by_query_and_goes_on_behind_its_cursor(tmp_path: Path) -> None:
    wait = asyncio.Event()
    backend = ScriptedBackend("one ", wait, "two")
    path = PATH + "/stream?message=count&specialists=apollo,%20metis&timeout=5"
    async with gateway(tmp_path, apollo=backend, metis=ScriptedBackend("me"), numa=EchoBackend()) as served:
        with anyio.fail_after(5):
            seen = []
            async with served.events("GET", path) as events:
                async for event in events:
                    seen.append(event)
                    if {"one "} <= {one["token"] for one in of(seen, "token")} and of(seen, "message"):
                        break
            wait.set()
            async with served.events("GET", path, headers={"Last-Event-ID": seen[-1].id}) as events:
                rest = await events.all()
            status, _, _ = await served.request("GET", path, headers={"Last-Event-ID": rest[-1].id})
    told = of(seen + rest, "token")
    assert sorted(one["token"] for one in told) == ["me", "one ", "two"]
    assert of(rest, "complete")[0]["result"]["responses_by_id"] == {"apollo": "one two", "metis": "me"}
    assert status == 204
    assert len(backend.prompts) == 1


@pytest.mark.parametrize("path", [PATH, PATH + "/stream"])
async def test_a_reader_who_leaves_ends_everybodys_answer(tmp_path: Path, path: str) -> None:
    team = [ScriptedBackend("Hel", asyncio.Event()) for _ in range(3)]
    async with gateway(tmp_path, apollo=team[0], metis=team[1], numa=team[2]) as served:
        with anyio.fail_after(5):
            with anyio.move_on_after(0.3):
                await served.request("POST", path, json={"message": "hi"})
            await until(lambda: [one.cut_short for one in team] == [1, 1, 1])


async def test_with_resume_it_goes_on_for_whoever_comes_back(tmp_path: Path) -> None:
    wait = asyncio.Event()
    async with gateway(tmp_path, apollo=ScriptedBackend("one ", wait, "two")) as served:
        with anyio.fail_after(5):
            body = {"message": "count", "resume": True}
            async with served.events("POST", PATH + "/stream", json=body) as events:
                stream_id, seen = events.stream_id, await events.until("token")
            wait.set()
            again = {"Last-Event-ID": seen[-1].id}
            async with served.events("GET", f"/api/stream/events/{stream_id}", headers=again) as events:
                rest = await events.all()
    assert [one["token"] for one in of(rest, "token")] == ["two"]


@pytest.mark.parametrize("path", [PATH, PATH + "/stream"])
async def test_a_retry_with_its_key_joins_the_first_one(tmp_path: Path, path: str) -> None:
    backend, key = ScriptedBackend("Hello"), {"Idempotency-Key": "k"}
    async with gateway(tmp_path, apollo=backend) as served:
        with anyio.fail_after(5):
            _, first, _ = await served.request("POST", path, json={"message": "hi"}, headers=key)
            _, second, _ = await served.request("POST", path, json={"message": "hi"}, headers=key)
    assert first == second
    assert len(backend.prompts) == 1


async def test_one_that_is_cut_short_as_a_whole_tells_what_had_arrived(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("Hel", asyncio.Event()), metis=ScriptedBackend("me")) as served:
        with anyio.fail_after(5):
            async with served.events("POST", PATH + "/stream", json={"message": "hi"}) as events:
                seen = []
                async for event in events:
                    seen.append(event)
                    if len(of(seen, "token")) == 2 and of(seen, "message"):
                        break
                await served.house.drain(0.0)
                *_, error, done = await events.all()
    assert (error.name, error.json["code"], done.name) == ("error", "gateway_restarted", "done")
    assert error.json["responses_by_id"] == {"apollo-ai": "Hel", "metis-ai": "me"}


async def test_whoever_fell_behind_is_given_all_texts_so_far(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("Hel", "lo")) as served:
        with anyio.fail_after(5):
            async with served.events("POST", PATH + "/stream", json={"message": "hi"}) as events:
                said = [(event.name, event.data.encode()) for event in await events.until("message")]
    assert VOCABULARY.behind is not None
    name, data = VOCABULARY.behind(3, VOCABULARY.fold(said))
    told = json.loads(data)
    assert (name, told["lost"], told["snapshot"]["responses_by_id"]) == ("stream_reset", 3, {"apollo-ai": "Hello"})


# -- sockets ------------------------------------------------------------------------------------------------------------------


async def test_the_sockets_are_those_who_may_be_asked(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend(), metis=EchoBackend()) as served:
        now(served, metis="stopped")
        told = await served.get(PATH + "/sockets")
    assert told["total"] == 2
    assert [(one["socket_id"], one["specialist_id"], one["state"], one["ready"]) for one in told["sockets"]] == [
        ("apollo-ci", "apollo-ai", "ready", True),
        ("metis-ci", "metis-ai", "stopped", False),
    ]


async def test_a_socket_is_made_to_forget_one_session(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    async with gateway(tmp_path, apollo=backend) as served:
        with anyio.fail_after(5):
            for session in ("s", "other"):
                await served.post(PATH, message="one", session_id=session)
            told = await served.post(PATH + "/sockets/apollo-ci/reset", session_id="s")
            for session in ("s", "other"):
                await served.post(PATH, message="two", session_id=session)
            status, wrong, _ = await served.request("POST", PATH + "/sockets/apollo/reset", json={})
    assert told == {"socket_id": "apollo-ci", "session_id": "s", "removed": 2}
    assert [len(prompt.turns) for prompt in backend.prompts] == [1, 1, 1, 3]
    assert (status, wrong["error"][:19]) == (422, "session_id: missing")


async def test_a_socket_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teamsockets, "RESET_WITHIN", 0.1)
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with socket.create_server(("127.0.0.1", 0)) as silent, anyio.fail_after(5):
            specialists = served.house.team._specialists
            specialists["apollo"] = replace(specialists["apollo"], port=silent.getsockname()[1])
            status, told, _ = await served.request("POST", PATH + "/sockets/apollo/reset", json={"session_id": "s"})
    assert (status, told["code"]) == (504, "stalled")
