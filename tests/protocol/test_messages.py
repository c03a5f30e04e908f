"""The shapes of requests and answers are the wire's."""

from __future__ import annotations

import inspect
import json
from typing import Any, cast

import msgspec
import pytest

from protocol import messages
from protocol.codec import encode
from protocol.messages import AnyReply, AnyRequest, Chat, Context, HealthResponse, Options

EVERY_REQUEST = {"request_id", "close"}
REQUEST_FIELDS = {
    "chat": {
        "content", "message", "stream", "final", "context", "history", "options", "deadline",
        "temperature", "max_tokens",
    },
    "ping": {"timestamp"},
    "health": set(),
    "info": set(),
    "history": {"session_id", "limit", "before"},
    "reset": {"session_id"},
    "embed": {"input"},
    "cancel": {"target"},
}  # fmt: skip
CHAT_RESPONSE = {
    "request_id", "ai_id", "content", "response", "thinking", "model", "context", "usage", "timing",
    "latency", "done_reason",
}  # fmt: skip
REPLY_FIELDS = {
    "pong": {"ai_id", "status", "pid", "instance", "timestamp"},
    "health_response": {
        "ai_id", "status", "component", "model", "pid", "instance", "clients", "in_flight", "queued",
        "backend", "uptime", "rss_bytes", "loop_lag_ms",
    },
    "info_response": {
        "ai_id", "component", "description", "model_provider", "model_name", "system_prompt", "port",
        "capabilities", "protocol", "limits",
    },
    "history_response": {"conversations", "total"},
    "reset_response": set(),
    "embed_response": {"embeddings", "model"},
    "cancelled": set(),
    "chat_response": CHAT_RESPONSE,
    "stream_start": {"ai_id", "model"},
    "stream_status": {"phase", "position"},
    "stream_chunk": {"chunk_index", "content", "thinking"},
    "stream_end": CHAT_RESPONSE | {"metadata"},
    "error": {"code", "error", "partial", "retry_after"},
    "stream_error": {"code", "error", "partial", "retry_after"},
    "heartbeat": set(),
}  # fmt: skip

STRUCTS = [
    cls
    for _, cls in inspect.getmembers(messages, inspect.isclass)
    if issubclass(cls, msgspec.Struct) and cls.__module__ == messages.__name__
]


def by_tag(union: Any) -> dict[str, type[msgspec.Struct]]:
    return {cast("str", cls.__struct_config__.tag): cls for cls in union.__args__}


def test_the_request_types_are_the_wires() -> None:
    assert set(by_tag(AnyRequest)) == set(REQUEST_FIELDS)


def test_the_reply_types_are_the_wires() -> None:
    assert set(by_tag(AnyReply)) == set(REPLY_FIELDS)


@pytest.mark.parametrize("tag", REQUEST_FIELDS)
def test_a_request_has_the_wires_fields(tag: str) -> None:
    assert REQUEST_FIELDS[tag] | EVERY_REQUEST <= set(by_tag(AnyRequest)[tag].__struct_fields__)


@pytest.mark.parametrize("tag", REPLY_FIELDS)
def test_a_reply_has_the_wires_fields(tag: str) -> None:
    assert REPLY_FIELDS[tag] | {"request_id"} <= set(by_tag(AnyReply)[tag].__struct_fields__)


@pytest.mark.parametrize("cls", STRUCTS, ids=lambda cls: cls.__name__)
def test_a_message_is_a_frozen_value_that_ignores_unknown_fields(cls: type[msgspec.Struct]) -> None:
    assert cls.__struct_config__.frozen
    assert not cls.__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize("cls", by_tag(AnyReply).values(), ids=lambda cls: cls.__name__)
def test_a_reply_without_request_id_does_not_send_one(cls: type[msgspec.Struct]) -> None:
    assert cls.__struct_config__.omit_defaults


def test_an_error_always_says_what_had_arrived() -> None:
    assert json.loads(encode(messages.Error(code="busy", error="wait", partial=""))) == {
        "type": "error",
        "code": "busy",
        "error": "wait",
        "partial": "",
    }
    assert b'"partial":""' in encode(messages.StreamError(code="busy", error="wait", partial=""))


def test_the_first_chunk_sends_its_index() -> None:
    assert json.loads(encode(messages.StreamChunk(chunk_index=0, thinking="hm"))) == {
        "type": "stream_chunk",
        "chunk_index": 0,
        "thinking": "hm",
    }


def test_a_short_end_leaves_content_and_response_out() -> None:
    end = messages.StreamEnd(
        ai_id="a",
        model="m",
        context={},
        timing=messages.Timing(queued_ms=0.0, total_ms=0.0),
        latency=0.0,
        done_reason="stop",
        metadata={},
    )
    sent = json.loads(encode(end))
    assert not {"content", "response", "thinking", "usage", "notices"} & set(sent)
    assert sent["timing"] == {"queued_ms": 0.0, "total_ms": 0.0}


def test_a_model_server_without_an_error_says_null() -> None:
    state = messages.BackendState(kind="builtin", url=None, state="ready", error=None)
    assert json.loads(msgspec.json.encode(state)) == {
        "kind": "builtin",
        "url": None,
        "state": "ready",
        "error": None,
    }


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled"])
def test_an_answer_is_done_for_one_of_three_reasons(reason: str) -> None:
    assert msgspec.convert(reason, messages.DoneReason) == reason
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(reason.upper(), messages.DoneReason)


def test_history_gives_ten_turns_unless_asked() -> None:
    assert messages.History().limit == 10


@pytest.mark.parametrize(
    ("chat", "temperature", "max_tokens"),
    [
        (Chat(content="x"), None, None),
        (Chat(content="x", temperature=0.5, max_tokens=3), 0.5, 3),
        (Chat(content="x", options=Options(temperature=0.1, max_tokens=4)), 0.1, 4),
        (
            Chat(content="x", temperature=0.5, max_tokens=3, options=Options(temperature=0.0, max_tokens=4)),
            0.0,
            4,
        ),
        (Chat(content="x", temperature=0.0, options=Options(max_tokens=4)), 0.0, 4),
    ],
)
def test_options_win_over_the_top_level(chat: Chat, temperature: float | None, max_tokens: int | None) -> None:
    merged = chat.merged_options()
    assert (merged.temperature, merged.max_tokens) == (temperature, max_tokens)


def test_merging_keeps_the_other_options() -> None:
    chat = Chat(content="x", temperature=0.5, options=Options(model="m", seed=0, stop="."))
    assert chat.merged_options() == Options(model="m", seed=0, stop=".", temperature=0.5)


@pytest.mark.parametrize(
    ("context", "author", "stage"),
    [
        (Context(), None, None),
        (Context(previous_specialist="a", pipeline_stage=0), "a", 0),
        (Context(previous_ai="a", pipeline_position=3), "a", 3),
        (Context(previous_specialist="a", previous_ai="b", pipeline_stage=0, pipeline_position=3), "a", 0),
    ],
)
def test_the_newer_spelling_of_the_context_wins(context: Context, author: str | None, stage: int | None) -> None:
    assert (context.author, context.stage) == (author, stage)


def test_a_health_response_needs_no_more_than_a_name_and_a_pid() -> None:
    told = msgspec.json.decode(b'{"type":"health_response","ai_id":"chronos-ci","pid":7}', type=HealthResponse)
    assert (told.status, told.backend.state, told.in_flight, told.rss_bytes) == ("healthy", "ready", 0, None)


def test_our_own_health_response_is_whole_also_where_nothing_goes_on() -> None:
    told = msgspec.json.decode(msgspec.json.encode(HealthResponse(ai_id="apollo-ci", pid=7)))
    assert {"status", "component", "model", "instance", "clients", "in_flight", "queued", "backend"} <= told.keys()
