"""Requests and their answers: every row of the two tables, the order, the limits, cancellation."""

from __future__ import annotations

import asyncio
import bisect
import logging
import os
import re
from pathlib import Path
from typing import Any

import anyio
import pytest
from scripted import EchoBackend, ScriptedBackend
from serving import Json, serving, until

from daemon import replies
from daemon.backends import Finish, Piece, Waiting
from protocol import errors
from protocol.codec import BadLine, decode_request
from protocol.messages import BackendState

CHAT: Json = {"type": "chat", "request_id": "r1", "content": "Why?"}
STREAM: Json = {**CHAT, "stream": True}


# -- the table of requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        {"type": "chat", "content": "Why?"},
        {"content": "Why?"},
        {"message": "Why?"},
        {"type": "chat", "message": "Why?"},
    ],
)
async def test_a_question_in_any_spelling_is_answered(tmp_path: Path, request_: Json) -> None:
    async with serving(ScriptedBackend("Be", "cause."), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            reply = await client.ask(request_)
    assert (reply["type"], reply["content"], reply["response"]) == ("chat_response", "Because.", "Because.")


async def test_a_chat_response_has_every_field_of_the_contract(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(Piece(thinking="Hm."), "Because."), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            reply = await client.ask({**CHAT, "context": {"specialist_id": "Apollo", "pipeline_position": 2}})
    timing = reply.pop("timing")
    assert {"queued_ms", "first_token_ms", "total_ms", "tokens_per_second"} == set(timing)
    assert reply.pop("latency") == pytest.approx(timing["total_ms"] / 1000, abs=0.001)
    assert reply["context"].pop("session_id")
    assert reply == {
        "type": "chat_response",
        "request_id": "r1",
        "ai_id": "apollo-ci",
        "content": "Because.",
        "response": "Because.",
        "thinking": "Hm.",
        "model": "scripted:1b",
        "context": {"specialist_id": "Apollo", "pipeline_position": 2, "pipeline_stage": 2},
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
        "done_reason": "stop",
    }


async def test_tokens_per_second_is_the_model_servers_own_or_absent(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x", Finish(done_reason="stop")), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            reply = await client.ask(CHAT)
    assert "tokens_per_second" not in reply["timing"]
    assert "usage" not in reply


async def test_a_ping_is_answered_with_who_we_are(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            reply = await client.ask({"type": "ping", "timestamp": "then", "request_id": 7})
    instance = served.specialist.instance
    wanted: Json = {"type": "pong", "request_id": 7, "ai_id": "apollo-ci", "status": "ok", "pid": os.getpid()}
    assert reply == {**wanted, "instance": instance, "timestamp": "then"}


async def test_health_has_every_figure_of_the_contract(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            reply = await client.ask({"type": "health"})
    assert (reply["type"], reply["ai_id"], reply["status"]) == ("health_response", "apollo-ci", "healthy")
    assert (reply["component"], reply["model"], reply["pid"]) == ("apollo", "scripted:1b", os.getpid())
    assert (reply["clients"], reply["in_flight"], reply["queued"]) == (1, 0, 0)
    assert reply["backend"] == {"kind": "scripted", "url": None, "state": "ready", "error": None}
    assert 0 <= reply["uptime"] < 5
    assert reply["rss_bytes"] > 1_000_000
    assert {"instance", "loop_lag_ms"} <= set(reply)


@pytest.mark.parametrize(
    ("state", "status"),
    [("ready", "healthy"), ("loading", "healthy"), ("model_missing", "degraded"), ("down", "degraded")],
)
async def test_health_follows_the_model_server(tmp_path: Path, state: Any, status: str) -> None:
    backend = ScriptedBackend()
    backend.state = BackendState(kind="scripted", url="http://x", state=state, error="gone")
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            assert (await client.ask({"type": "health"}))["status"] == status


async def test_health_counts_what_is_under_way_and_what_waits(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(asyncio.Event()), tmp_path) as served:
        client = await served.connect()
        client.send({"content": "one"}, {"content": "two"}, {"content": "three"}, CHAT, {"type": "ping"})
        with anyio.fail_after(5):
            await client.until("pong")
            reply = await client.ask({"type": "health"})
    assert (reply["in_flight"], reply["queued"]) == (2, 2)


async def test_what_waited_for_its_turn_is_not_counted_after_its_client_left(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(asyncio.Event()), tmp_path) as served:
        client = await served.connect()
        client.send({"content": "one"}, {"content": "two"}, {"type": "ping"})
        with anyio.fail_after(5):
            await client.until("pong")
            await client.close()
            await until(lambda: served.specialist.in_flight == 0)
    assert served.specialist.queued == 0


async def test_info_says_who_this_is(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            reply = await client.ask({"type": "info", "request_id": "i"})
    assert (reply["type"], reply["request_id"], reply["ai_id"]) == ("info_response", "i", "apollo-ci")
    assert (reply["component"], reply["description"], reply["port"]) == ("apollo", "Looks ahead.", served.port)
    assert (reply["model_provider"], reply["model_name"]) == ("scripted", "scripted:1b")
    assert (reply["system_prompt"], reply["capabilities"]) == ("You are Apollo.", ["forecasts"])
    assert reply["protocol"] == 1
    assert reply["limits"]["max_line_bytes"] == 1_048_576


async def test_embeddings_come_one_for_each_text(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            one = await client.ask({"type": "embed", "input": "abc", "request_id": 1})
            two = await client.ask({"type": "embed", "input": ["a", "ab"], "model": "m"})
    assert one == {"type": "embed_response", "request_id": 1, "embeddings": [[3.0, 1.0]], "model": "scripted:1b"}
    assert (two["embeddings"], two["model"]) == ([[1.0, 1.0], [2.0, 1.0]], "m")


async def test_an_unknown_type_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            reply = await client.ask({"type": "chta", "request_id": "x"})
    assert (reply["type"], reply["code"], reply["request_id"]) == ("error", "unknown_type", "x")
    for known in ("chat", "ping", "health", "info", "history", "reset", "embed", "cancel"):
        assert known in reply["error"]


@pytest.mark.parametrize("request_id", ["r", "", 0, -5, 2**80])
async def test_a_request_id_comes_back_as_it_was(tmp_path: Path, request_id: Any) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        for kind in ("ping", "health", "info", "history", "embed", "chat", "cancel", "nonsense"):
            with anyio.fail_after(5):
                reply = await client.ask(
                    {"type": kind, "request_id": request_id, "content": "x", "input": "x", "target": "t"}
                )
            assert reply["request_id"] == request_id, kind


async def test_unknown_fields_of_a_request_are_ignored(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            assert (await client.ask({**CHAT, "_writer": 1, "user": {"a": [1]}}))["content"] == "x"


@pytest.mark.parametrize(
    ("line", "code", "place"),
    [
        (b'{"content": "x",}\n', "bad_json", "byte 16"),
        (b'{"content": "\xff"}\n', "bad_json", "byte 13"),
        (b'{"content": "x"\n', "bad_json", "byte 15"),
        (b'{"content": 5}\n', "bad_request", "content"),
        (b'{"content": "x", "options": {"temperature": "hot"}}\n', "bad_request", "options.temperature"),
        (b'{"content": "x", "context": {"memory_hints": [1]}}\n', "bad_request", "context.memory_hints"),
        (b'{"content": "  "}\n', "bad_request", "content"),
        (b'{"type": "cancel"}\n', "bad_request", "target"),
        (b'{"type": "reset"}\n', "bad_request", "session_id"),
        (b'{"type": 5}\n', "bad_request", "type"),
        (b"{}\n", "bad_request", "type"),
    ],
)
async def test_an_error_names_the_place_and_the_connection_goes_on(
    tmp_path: Path, line: bytes, code: str, place: str
) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            reply = await client.ask(line)
            assert (await client.ask({"type": "ping"}))["type"] == "pong"
    assert (reply["type"], reply["code"], reply["partial"]) == ("error", code, "")
    assert place in reply["error"]


# -- the stream -----------------------------------------------------------------------------------------------------------


async def test_a_stream_is_a_start_then_numbered_chunks_then_one_end(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("Hel", Piece(thinking="hm"), Piece("l", "o"), ""), tmp_path) as served:
        client = await served.connect()
        client.send(STREAM)
        client.end()
        with anyio.fail_after(5):
            start, *chunks, end = await client.replies()
    assert start == {"type": "stream_start", "request_id": "r1", "ai_id": "apollo-ci", "model": "scripted:1b"}
    assert all(chunk["type"] == "stream_chunk" and chunk["request_id"] == "r1" for chunk in chunks)
    assert [chunk["chunk_index"] for chunk in chunks] == [0, 1, 2, 3]
    said = [(chunk.get("content"), chunk.get("thinking")) for chunk in chunks]
    assert said == [("Hel", None), (None, "hm"), (None, "o"), ("l", None)]
    assert (end["type"], end["content"], end["response"], end["thinking"]) == ("stream_end", "Hell", "Hell", "hmo")


async def test_the_end_of_a_stream_repeats_its_fields_as_metadata(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        client.send(STREAM)
        with anyio.fail_after(5):
            end = (await client.until("stream_end"))[-1]
    metadata = end.pop("metadata")
    assert metadata == {key: end[key] for key in end if key not in ("type", "request_id", "content", "response")}
    assert {"ai_id", "model", "context", "usage", "timing", "latency", "done_reason"} <= set(metadata)


async def test_a_short_end_leaves_the_text_out(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        client.send({**STREAM, "final": "short"})
        with anyio.fail_after(5):
            end = (await client.until("stream_end"))[-1]
    assert "content" not in end
    assert "response" not in end
    assert end["done_reason"] == "stop"


async def test_why_nothing_comes_is_told_in_a_stream(tmp_path: Path) -> None:
    script: list[Any] = [Waiting("queued", 3), Waiting("loading"), Waiting("prefill"), "x"]
    async with serving(ScriptedBackend(*script), tmp_path) as served:
        client = await served.connect()
        client.send(STREAM)
        with anyio.fail_after(5):
            replies = await client.until("stream_end")
    assert replies[1:4] == [
        {"type": "stream_status", "request_id": "r1", "phase": "queued", "position": 3},
        {"type": "stream_status", "request_id": "r1", "phase": "loading"},
        {"type": "stream_status", "request_id": "r1", "phase": "prefill"},
    ]


async def test_a_silent_stream_has_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "HEARTBEAT_AFTER", 0.01)
    more = asyncio.Event()
    async with serving(ScriptedBackend("a", more, "b"), tmp_path) as served:
        client = await served.connect()
        client.send(STREAM)
        with anyio.fail_after(5):
            assert (await client.until("heartbeat"))[-1] == {"type": "heartbeat", "request_id": "r1"}
            await client.until("heartbeat")
            more.set()
            after = await client.until("stream_end")
    assert [reply["chunk_index"] for reply in after if reply["type"] == "stream_chunk"] == [1]


async def test_no_heartbeat_follows_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "HEARTBEAT_AFTER", 0.001)
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    backend = ScriptedBackend(answer=lambda prompt: ["a"] if prompt.turns[-1].content == "quick" else [asyncio.Event()])
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send({**STREAM, "request_id": 1, "content": "quick"}, {**STREAM, "request_id": 2})
        with anyio.fail_after(5):
            await client.until("stream_end")
            after = [await client.until("heartbeat") for _ in range(5)]
    assert {reply["request_id"] for replies in after for reply in replies} == {2}
    assert failures == []


FAILURES = [cls for cls in errors.BY_CODE.values() if cls is not errors.Internal]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda cls: cls.code)
async def test_a_failure_ends_a_stream_with_its_code_and_what_had_arrived(
    tmp_path: Path, failure: type[errors.ProtocolError]
) -> None:
    async with serving(
        ScriptedBackend("Hel", "lo", failure("what, and what to do", retry_after=2.0)), tmp_path
    ) as served:
        client = await served.connect()
        client.send(STREAM)
        client.end()
        with anyio.fail_after(5):
            *_, last = await client.replies()
    assert last == {
        "type": "stream_error",
        "request_id": "r1",
        "ai_id": "apollo-ci",
        "code": failure.code,
        "error": "what, and what to do",
        "partial": "Hello",
        "retry_after": 2.0,
    }


async def test_a_failure_without_a_stream_is_an_error_with_what_had_arrived(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("Hel", errors.ModelError("broken: ask again")), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            reply = await client.ask(CHAT)
    assert (reply["type"], reply["code"], reply["partial"]) == ("error", "model_error", "Hel")
    assert "content" not in reply


async def test_a_request_refused_before_the_stream_is_an_error(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        served.specialist.draining = True
        with anyio.fail_after(5):
            reply = await client.ask(STREAM)
    assert (reply["type"], reply["code"], reply["partial"], reply["request_id"]) == ("error", "draining", "", "r1")
    assert reply["retry_after"] > 0


@pytest.mark.parametrize("failure", [ValueError("oops"), ExceptionGroup("two", [ValueError("oops")])])
async def test_our_own_fault_ends_a_stream_as_internal_with_a_trace_id_that_is_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    async with serving(ScriptedBackend("Hel", failure), tmp_path) as served:
        client = await served.connect()
        client.send(STREAM)
        with anyio.fail_after(5), caplog.at_level(logging.ERROR):
            last = (await client.until("stream_error"))[-1]
            assert (await client.ask({"type": "ping"}))["type"] == "pong"
    assert (last["code"], last["partial"]) == ("internal", "Hel")
    assert last["error"].rsplit(" ", 1)[1] in caplog.text
    assert "oops" in caplog.text


async def test_our_own_fault_without_a_stream_is_an_internal_error(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("Hel", ValueError("oops")), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            reply = await client.ask(CHAT)
    assert (reply["type"], reply["code"], reply["partial"], reply["request_id"]) == ("error", "internal", "Hel", "r1")


ENDS = tuple(f'{{"type":"{kind}"' for kind in ("stream_end", "stream_error", "error"))


def nested(depth: int) -> bytes:
    return b'{"content":"x","stream":true,"context":{"a":%s%s}}' % (b"[" * depth, b"]" * depth)


def is_too_deep(depth: int) -> bool:
    try:
        decode_request(nested(depth))
    except BadLine:
        return True
    return False


async def test_json_of_any_depth_has_an_end(tmp_path: Path) -> None:
    """Up to the depth that can just be read: whether it can be written again depends on where we stand."""
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        ends = set()
        deepest = bisect.bisect(range(100_000), False, key=is_too_deep)  # some 1000; ten times that from Python 3.12 on
        for depth in range(deepest - 80, deepest + 20):
            client.send(nested(depth) + b"\n")
            with anyio.fail_after(5):
                # Not parsed: what the specialist can just read may be too deep for us.
                while not (line := await client.text()).startswith(ENDS):
                    assert line, "the connection ended where a reply was due"
            code = re.search(r'"code":"(\w+)"', line)
            ends.add(code and code[1])
    assert {None, "bad_json"} <= ends <= {None, "bad_json", "internal"}


# -- limits of one answer ---------------------------------------------------------------------------------------------------


async def test_a_callers_deadline_ends_the_answer_with_what_had_arrived(tmp_path: Path) -> None:
    backend = ScriptedBackend("Hel", asyncio.Event())
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send({**STREAM, "deadline": 0.05})
        with anyio.fail_after(5):
            last = (await client.until("stream_error"))[-1]
    assert (last["code"], last["partial"]) == ("deadline", "Hel")
    assert backend.cut_short == 1


async def test_a_deadline_also_passes_while_a_question_waits_for_its_turn(tmp_path: Path) -> None:
    first = asyncio.Event()
    backend = ScriptedBackend(answer=lambda prompt: [first] if prompt.turns[-1].content == "one" else ["x"])
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send({"content": "one"}, {"content": "two", "deadline": 0.1})
        asyncio.get_running_loop().call_later(0.2, first.set)
        with anyio.fail_after(5):
            await client.reply()
            assert (await client.reply())["code"] == "deadline"


@pytest.mark.parametrize("pieces", [["x" * 600] * 3, ["ü" * 300] * 3, [Piece("a", "t" * 600)] * 3])
async def test_an_answer_over_the_limit_ends_there(tmp_path: Path, pieces: list[Any]) -> None:
    async with serving(ScriptedBackend(*pieces), tmp_path, max_reply_bytes=1024) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            reply = await client.ask(CHAT)
    assert reply["done_reason"] == "length"
    assert 1022 <= len((reply["content"] + reply.get("thinking", "")).encode()) <= 1024


async def test_thoughts_alone_up_to_the_limit_are_no_answer(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(Piece(thinking="t" * 2000)), tmp_path, max_reply_bytes=1024) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            assert (await client.ask(CHAT))["code"] == "empty_answer"


# -- order and limits -------------------------------------------------------------------------------------------------------


async def test_questions_without_an_id_are_answered_one_after_the_other(tmp_path: Path) -> None:
    backend = ScriptedBackend(answer=lambda prompt: [prompt.turns[-1].content])
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send(*({"content": str(number), "stream": True} for number in range(10)))
        client.end()
        with anyio.fail_after(5):
            ends = [reply["content"] for reply in await client.replies() if reply["type"] != "stream_start"]
    assert ends == [text for number in range(10) for text in (str(number), str(number))]


async def test_only_one_question_without_an_id_is_under_way(tmp_path: Path) -> None:
    backend = ScriptedBackend(asyncio.Event())
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send({"content": "a"}, {"content": "b"}, {"type": "ping"})
        with anyio.fail_after(5):
            await client.until("pong")
            await until(lambda: backend.under_way)
            await client.ask({"type": "ping"})
    assert backend.questions == ["a"]


async def test_a_line_that_is_no_request_is_answered_in_its_turn(tmp_path: Path) -> None:
    first = asyncio.Event()
    async with serving(ScriptedBackend(first, "x"), tmp_path) as served:
        client = await served.connect()
        client.send({"content": "a"}, b"{bad\n", {"content": "b"}, {"type": "ping"})
        with anyio.fail_after(5):
            await client.until("pong")
            first.set()
            assert [(await client.reply())["type"] for _ in range(3)] == ["chat_response", "error", "chat_response"]


async def test_questions_with_an_id_run_side_by_side(tmp_path: Path) -> None:
    slow = asyncio.Event()
    backend = ScriptedBackend(answer=lambda prompt: ["x"] if prompt.turns[-1].content == "quick" else [slow, "y"])
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send({**CHAT, "request_id": "s", "content": "slow"}, {**CHAT, "request_id": 2, "content": "quick"})
        with anyio.fail_after(5):
            assert (await client.reply())["request_id"] == 2
            slow.set()
            assert (await client.reply())["request_id"] == "s"


async def test_an_id_that_is_under_way_already_is_refused(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(asyncio.Event()), tmp_path) as served:
        client = await served.connect()
        client.send(CHAT)
        with anyio.fail_after(5):
            reply = await client.ask(CHAT)
    assert (reply["code"], reply["request_id"]) == ("bad_request", "r1")


async def test_the_same_text_and_number_are_two_ids(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        client.send({**CHAT, "request_id": 1}, {**CHAT, "request_id": "1"})
        with anyio.fail_after(5):
            replies = [await client.reply(), await client.reply()]
    assert [reply["type"] for reply in replies] == ["chat_response", "chat_response"]


async def test_an_id_may_be_used_again_when_its_answer_ended(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            assert [(await client.ask(CHAT))["type"] for _ in range(3)] == ["chat_response"] * 3


@pytest.mark.parametrize("numbered", [True, False])
async def test_one_request_over_the_limit_is_busy(tmp_path: Path, numbered: bool) -> None:
    go = asyncio.Event()
    async with serving(ScriptedBackend(go, "x"), tmp_path) as served:
        client = await served.connect()
        ids = [{"request_id": number} if numbered else {} for number in range(17)]
        client.send(*({"type": "chat", "content": "x", **one} for one in ids))
        with anyio.fail_after(5):
            refused = await client.reply()
            go.set()
            answered = [(await client.reply())["type"] for _ in range(16)]
    assert (refused["code"], refused.get("request_id")) == ("busy", 16 if numbered else None)
    assert refused["retry_after"] > 0
    assert answered == ["chat_response"] * 16


@pytest.mark.parametrize("kind", ["ping", "health", "info", "cancel"])
async def test_what_needs_no_model_is_answered_while_sixteen_answers_are_under_way(tmp_path: Path, kind: str) -> None:
    async with serving(ScriptedBackend(asyncio.Event()), tmp_path) as served:
        client = await served.connect()
        client.send(*({**CHAT, "request_id": number} for number in range(16)))
        with anyio.fail_after(5):
            reply = await client.ask({"type": kind, "request_id": "now", "target": "nothing"})
    assert reply["request_id"] == "now"


# -- cancel -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [[], ["Hel"], [Waiting("queued", 2)]], ids=["first token", "middle", "queued"])
async def test_a_cancelled_stream_ends_with_what_had_arrived(tmp_path: Path, before: list[Any]) -> None:
    backend = ScriptedBackend(*before, asyncio.Event())
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send(STREAM)
        with anyio.fail_after(5):
            for _ in range(1 + len(before)):
                await client.reply()
            cancelled = await client.ask({"type": "cancel", "target": "r1", "request_id": "c"})
            end = await client.reply()
    assert cancelled == {"type": "cancelled", "request_id": "c", "target": "r1"}
    partial = "Hel" if before == ["Hel"] else ""
    assert (end["type"], end["done_reason"], end["content"]) == ("stream_end", "cancelled", partial)
    assert backend.cut_short == 1


async def test_a_cancelled_question_without_a_stream_is_answered_with_what_had_arrived(tmp_path: Path) -> None:
    backend = ScriptedBackend("Hel", asyncio.Event())
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send(CHAT)
        with anyio.fail_after(5):
            await until(lambda: backend.under_way)
            client.send({"type": "cancel", "target": "r1"})
            assert (await client.reply())["type"] == "cancelled"
            end = await client.reply()
    assert (end["type"], end["done_reason"], end["request_id"]) == ("chat_response", "cancelled", "r1")


async def test_a_cancel_in_the_same_packet_as_its_question_finds_it(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("Hel", asyncio.Event()), tmp_path) as served:
        client = await served.connect()
        client.send(STREAM, {"type": "cancel", "target": "r1"})
        client.end()
        with anyio.fail_after(5):
            replies = await client.replies()
    assert [reply["type"] for reply in replies if reply["type"] in ("cancelled", "stream_end")] == [
        "cancelled",
        "stream_end",
    ]


async def test_a_cancel_before_the_stream_began_ends_it_as_a_stream(tmp_path: Path) -> None:
    """Looking up what was said earlier in the session comes before stream_start."""
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        client.send({**STREAM, "context": {"session_id": "s"}}, {"type": "cancel", "target": "r1"})
        with anyio.fail_after(5):
            replies = await client.until("stream_end")
    assert [reply["type"] for reply in replies] == ["cancelled", "stream_start", "stream_end"]
    assert (replies[-1]["done_reason"], replies[-1]["content"]) == ("cancelled", "")


@pytest.mark.parametrize("target", ["r2", 1, "1"])
async def test_nothing_of_that_id_to_cancel_is_not_found(tmp_path: Path, target: Any) -> None:
    async with serving(ScriptedBackend(asyncio.Event()), tmp_path) as served:
        client = await served.connect()
        client.send(CHAT)
        with anyio.fail_after(5):
            reply = await client.ask({"type": "cancel", "target": target, "request_id": "c"})
    assert (reply["type"], reply["code"], reply["request_id"]) == ("error", "not_found", "c")


async def test_a_question_on_another_connection_cannot_be_cancelled(tmp_path: Path) -> None:
    async with serving(ScriptedBackend(asyncio.Event()), tmp_path) as served:
        mine, other = await served.connect(), await served.connect()
        mine.send(CHAT, {"type": "ping"})
        with anyio.fail_after(5):
            await mine.until("pong")
            assert (await other.ask({"type": "cancel", "target": "r1"}))["code"] == "not_found"


async def test_a_cancel_at_any_moment_leaves_exactly_one_end(tmp_path: Path) -> None:
    async with serving(EchoBackend(), tmp_path) as served:
        client = await served.connect()
        for turns in range(40):
            client.send({**STREAM, "request_id": turns, "content": "a b c d e"})
            await until_turns(turns)
            client.send({"type": "cancel", "target": turns, "request_id": "c"}, {"type": "ping", "request_id": "p"})
            with anyio.fail_after(5):
                replies = [await client.reply()]
                while not {"stream_end", "pong"} <= {reply["type"] for reply in replies}:
                    replies.append(await client.reply())
            ends = [reply["type"] for reply in replies if reply["request_id"] == turns and "chunk_index" not in reply]
            assert ends == ["stream_start", "stream_end"]
    assert served.specialist.in_flight == 0


async def until_turns(count: int) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def test_a_cancelled_embedding_is_an_error(tmp_path: Path) -> None:
    class Slow(ScriptedBackend):
        async def embed(self, texts: list[str], model: str | None) -> tuple[list[list[float]], str]:
            await anyio.sleep_forever()
            raise AssertionError

    async with serving(Slow(), tmp_path) as served:
        client = await served.connect()
        client.send({"type": "embed", "input": "x", "request_id": "e"}, {"type": "cancel", "target": "e"})
        with anyio.fail_after(5):
            assert (await client.reply())["type"] == "cancelled"
            reply = await client.reply()
    assert (reply["type"], reply["request_id"]) == ("error", "e")
