"""One specialist asked over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import pytest
from gatewaying import gateway
from msgspec.structs import replace
from scripted import EchoBackend, ScriptedBackend
from serving import until

from protocol.errors import BackendDown, ModelError


async def test_the_whole_answer_has_the_fields_of_the_wire(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("Hel", "lo")) as served:
        with anyio.fail_after(5):
            told = await served.post("/api/chat/apollo-ai", message="hi")
    assert told["type"] == "chat_response"
    assert told["content"] == told["response"] == "Hello"
    assert told["ai_id"] == "apollo-ci"
    assert told["done_reason"] == "stop"
    assert told["usage"]["completion_tokens"] == 2


async def test_tokens_come_in_the_shapes_of_all_the_originals(tmp_path: Path) -> None:
    async with gateway(tmp_path, athena=ScriptedBackend("Hel", "lo")) as served:
        with anyio.fail_after(5):
            async with served.events("POST", "/api/chat/athena-ai/stream", json={"message": "hi"}) as events:
                first, second, complete, done = await events.all()
    assert first.name == "token"
    assert first.json["data"]["token"] == first.json["token"] == first.json["content"] == "Hel"
    assert (first.json["event"], first.json["type"], first.json["specialist_id"]) == ("token", "chunk", "athena-ai")
    assert second.json["metadata"]["chunk_index"] == 1
    assert complete.json["content"] == "Hello"
    assert complete.json["summary"]["usage"]["completion_tokens"] == 2
    assert (done.name, done.data) == ("done", "")


async def test_a_refusal_before_the_first_token_has_a_status(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend(BackendDown("the model server is not running"))) as served:
        with anyio.fail_after(5):
            for path in ("/api/chat/apollo", "/api/chat/apollo/stream"):
                status, told, response = await served.request("POST", path, json={"message": "hi"})
                assert (status, told["code"]) == (502, "backend_down")
                assert response.content_type == "application/problem+json"
                assert told["error"] == "the model server is not running"


async def test_a_failure_in_the_middle_is_an_event_with_what_had_arrived(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("Hel", ModelError("it broke"))) as served:
        with anyio.fail_after(5):
            async with served.events("POST", "/api/chat/apollo/stream", json={"message": "hi"}) as events:
                token, error, done = await events.all()
    assert token.json["content"] == "Hel"
    assert error.json["code"] == "model_error"
    assert error.json["partial"] == "Hel"
    assert done.name == "done"


async def test_a_cut_connection_resumes_behind_its_cursor(tmp_path: Path) -> None:
    wait = asyncio.Event()
    backend = ScriptedBackend("one ", wait, "two ", "three")
    async with gateway(tmp_path, apollo=backend) as served:
        with anyio.fail_after(5):
            path = "/api/chat/apollo/stream?message=count"
            async with served.events("GET", path) as events:
                [first] = await events.until("token")
            wait.set()
            async with served.events("GET", path, headers={"Last-Event-ID": first.id}) as events:
                rest = await events.all()
            status, _, _ = await served.request("GET", path, headers={"Last-Event-ID": rest[-1].id})
    assert [event.json["content"] for event in rest if event.name == "token"] == ["two ", "three"]
    assert status == 204
    assert len(backend.prompts) == 1


async def test_a_stream_that_is_over_is_read_again_from_disk(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("Hel", "lo")) as served:
        with anyio.fail_after(5):
            async with served.events("POST", "/api/chat/apollo/stream", json={"message": "hi"}) as events:
                stream_id, seen = events.stream_id, await events.all()
            async with served.events("GET", f"/api/stream/events/{stream_id}") as events:
                again = await events.all()
            status = await served.get(f"/api/stream/status/{stream_id}")
    assert [str(one) for one in again] == [str(one) for one in seen]
    assert (status["state"], status["events"]) == ("completed", 4)


@pytest.mark.parametrize("path", ["/api/chat/apollo", "/api/chat/apollo/stream"])
async def test_a_caller_who_leaves_ends_the_answer(tmp_path: Path, path: str) -> None:
    backend = ScriptedBackend("Hel", asyncio.Event())
    async with gateway(tmp_path, apollo=backend) as served:
        with anyio.fail_after(5):
            with anyio.move_on_after(0.2):
                await served.request("POST", path, json={"message": "hi"})
            await until(lambda: backend.cut_short == 1)


async def test_unknown_names_are_answered_with_near_ones(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            status, told, _ = await served.request("POST", "/api/chat/apolo", json={"message": "hi"})
    assert status == 404
    assert "did you mean apollo" in told["error"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not JSON at byte"),
        (b'{"message": 3}', 422, "message: expected str"),
        (b"{}", 422, "message: missing"),
        (b'{"message": "x", "options": {"temperature": 20}}', 422, "options.temperature: expected"),
        (b'{"message": "x", "context": {"memory_hints": "y"}}', 422, "context.memory_hints: expected"),
    ],
)
async def test_a_wrong_body_is_told_where_it_is_wrong(tmp_path: Path, body: bytes, status: int, said: str) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            got, told, _ = await served.request("POST", "/api/chat/apollo", data=body)
    assert got == status
    assert said in told["error"]


async def test_a_look_at_a_stream_that_is_over_leaves_nothing_in_memory(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("Hel", "lo")) as served:
        with anyio.fail_after(5):
            async with served.events("POST", "/api/chat/apollo/stream", json={"message": "hi"}) as events:
                stream_id, last = events.stream_id, (await events.all())[-1]
            await served.get(f"/api/stream/status/{stream_id}")
            path = "/api/chat/apollo/stream"
            status, _, _ = await served.request("GET", path, headers={"Last-Event-ID": last.id})
            assert status == 204
            await until(lambda: served.house.streams.in_memory == 0)


async def test_a_specialist_that_is_gone_is_told_with_what_to_do(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        served.behind["apollo"].stop.set()
        await served.behind["apollo"].ended.wait()
        with anyio.fail_after(5):
            status, told, response = await served.request("POST", "/api/chat/apollo", json={"message": "hi"})
    assert (status, told["code"], response.headers["Retry-After"]) == (503, "unavailable", "1")
    assert told["error"].endswith("(connection refused); chorus status apollo says why")


async def test_a_question_is_not_for_a_stranger_who_has_the_port(tmp_path: Path) -> None:
    backend = EchoBackend()
    async with gateway(tmp_path, apollo=backend) as served:
        apollo = served.house.team.find("apollo")
        said = {"last_error": "port 45012 is held by pid 7", "remedy": "kill 7"}
        blocked = replace(apollo, state="backing_off", has_port=False, **said)
        served.house.team._specialists = {"apollo": blocked}
        with anyio.fail_after(5):
            status, told, _ = await served.request("POST", "/api/chat/apollo", json={"message": "hi"})
    assert status == 503
    assert told["error"] == "apollo does not answer: port 45012 is held by pid 7; kill 7"
    assert backend.prompts == []


@pytest.mark.parametrize("key", [b"\xff\xfe", b"\xed\xa0\x80", b"a\tb", b"x" * 256])
async def test_a_retry_key_that_cannot_be_kept_is_refused(tmp_path: Path, key: bytes) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            for path in ("/api/chat/apollo", "/api/chat/apollo/stream"):
                body = b'{"message": "hi"}'
                length = f"Content-Length: {len(body)}"
                head = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", b"Idempotency-Key: " + key, length)
                told = await served.raw(*head, body=body)
                assert told.status == 422
                assert b"Idempotency-Key: expected" in told.body
