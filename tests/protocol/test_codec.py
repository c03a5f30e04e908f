"""Bytes into requests: what is accepted, and what each kind of bad input is answered with, place included."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from protocol import messages
from protocol.codec import (
    REQUEST_TYPES,
    BadLine,
    decode_reply,
    decode_request,
    encode,
    error_reply,
    is_typed,
    read_context,
)
from protocol.errors import BadRequest, WrongReply
from protocol.messages import AnyReply, AnyRequest, Chat, Options, Timing, Turn

DEEP = b"[" * 100_000 + b"]" * 100_000

REQUESTS: list[AnyRequest] = [
    Chat(content="Hi"),
    Chat(message="Hi", request_id=7, close=True),
    Chat(
        request_id="r1",
        content="größer 😀 \u2028 \r\n \x00",
        stream=True,
        final="short",
        context={"session_id": "s", "unknown": {"kept": [1, None, 2.5]}},
        history=[Turn(role="user", content="a"), Turn(role="assistant", content="b")],
        options=Options(model="m", temperature=0.5, max_tokens=9, think="low", seed=1, stop=["x"], format="json"),
        deadline=2.5,
        temperature=1.0,
        max_tokens=5,
    ),
    messages.Ping(),
    messages.Ping(request_id="", timestamp="2024"),
    messages.Ping(request_id=-1, timestamp=1.5),
    messages.Health(request_id="h"),
    messages.Info(),
    messages.History(session_id="s", limit=3, before=1.0),
    messages.Reset(session_id="s"),
    messages.Embed(input=["a", "b"], model="m"),
    messages.Embed(input="a"),
    messages.Cancel(target=0),
    messages.Cancel(request_id="c", target="r1"),
]

ANSWER: dict[str, Any] = {
    "ai_id": "apollo-ci",
    "content": "Hello",
    "response": "Hello",
    "model": "m",
    "context": {"specialist_id": "apollo-ai"},
    "usage": messages.Usage(1, 2, 3),
    "timing": Timing(queued_ms=0.0, total_ms=1.0, first_token_ms=0.5),
    "latency": 0.001,
    "done_reason": "stop",
}
BACKEND = messages.BackendState(kind="ollama", url=None, state="ready", error=None)
REPLIES: list[AnyReply] = [
    messages.Pong(request_id=1, ai_id="apollo-ci", status="ok", pid=1, instance="i", timestamp=1.0),
    messages.HealthResponse(
        ai_id="a", status="healthy", component="c", model="m", pid=1, instance="i", clients=0,
        in_flight=0, queued=0, backend=BACKEND, uptime=1.0, rss_bytes=1, loop_lag_ms=0.1,
    ),
    messages.InfoResponse(
        ai_id="a", component="c", description="d", model_provider="p", model_name="m", system_prompt="s",
        port=1, capabilities=["chat"], protocol=1, limits={"a": 1.0}, version="0",
    ),
    messages.HistoryResponse(conversations=[messages.StoredTurn("s", "user", "x", 1.0, None)], total=1),
    messages.ResetResponse(session_id="s", removed=2),
    messages.EmbedResponse(embeddings=[[0.5]], model="m"),
    messages.Cancelled(target="r1"),
    messages.Error(request_id="r", code="busy", error="wait", partial="", retry_after=1.0),
    messages.ChatResponse(**ANSWER),
    messages.StreamStart(request_id="r", ai_id="a", model="m"),
    messages.StreamStatus(phase="queued", position=3),
    messages.StreamChunk(chunk_index=0, content="Hel"),
    messages.StreamEnd(**ANSWER, metadata={"latency": 0.001}),
    messages.StreamError(code="stalled", error="silent", partial="Hel"),
    messages.Heartbeat(request_id="r"),
]  # fmt: skip


def line_of(message: Any) -> bytes:
    return encode(message).removesuffix(b"\n")


def refusal(line: bytes) -> BadLine:
    with pytest.raises(BadLine) as caught:
        decode_request(line)
    return caught.value


def name(value: object) -> str:
    return type(value).__name__


# -- what is accepted -------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", REQUESTS, ids=name)
def test_every_request_comes_back_as_it_went(request_: AnyRequest) -> None:
    assert decode_request(line_of(request_)) == request_


@pytest.mark.parametrize("reply", REPLIES, ids=name)
def test_every_reply_comes_back_as_it_went(reply: AnyReply) -> None:
    assert decode_reply(line_of(reply)) == reply


def test_no_type_is_left_out_of_the_round_trips() -> None:
    assert {type(one) for one in REQUESTS} == set(AnyRequest.__args__)
    assert {type(one) for one in REPLIES} == set(AnyReply.__args__)
    assert {json.loads(encode(one))["type"] for one in REQUESTS} == set(REQUEST_TYPES)


@pytest.mark.parametrize("message", [*REQUESTS, *REPLIES], ids=name)
def test_a_message_is_one_line(message: Any) -> None:
    encoded = encode(message)
    assert encoded.endswith(b"\n")
    assert encoded.count(b"\n") == 1
    assert b"\r" not in encoded


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"content":"Hi"}', "Hi"),
        (b'{"message":"Hi"}', "Hi"),
        (b'{"type":"chat","message":"Hi"}', "Hi"),
        (b'{"content":"one","message":"two"}', "one"),
        (b'{"content":null,"message":"Hi"}', "Hi"),
        (b'{"message":null,"content":"Hi"}', "Hi"),
        (b'{"content":"","message":"two"}', ""),
        (b'{"content":""}', ""),
        (b'  {"content" : "Hi"}\t', "Hi"),
        (b'{"content":"a","content":"b"}', "b"),
        (b'{"ty\\u0070e":"ch\\u0061t","content":"Hi"}', "Hi"),
        ('{"content":"größer 😀"}'.encode(), "größer 😀"),
        (b'{"content":"\\ud83d\\ude00"}', "😀"),
        (b'{"content":"\\u0000\\n"}', "\x00\n"),
    ],
)
def test_a_missing_type_is_chat_and_message_is_content(line: bytes, text: str) -> None:
    request = decode_request(line)
    assert isinstance(request, Chat)
    assert request.text == text


def test_a_line_knows_whether_it_said_its_type() -> None:
    assert is_typed(b'{"content":"x","type":"chat"}')
    assert not is_typed(b'{"content":"x"}')


def test_unknown_fields_are_ignored() -> None:
    line = b'{"type":"ping","x":1,"y":{"z":[null,1e9,{}]},"content":5,"timestamp":1,"names":["a"]}'
    assert decode_request(line) == messages.Ping(timestamp=1)


def test_unknown_options_are_ignored() -> None:
    request = decode_request(b'{"content":"x","options":{"num_ctx":4096,"seed":1}}')
    assert request == Chat(content="x", options=Options(seed=1))


@pytest.mark.parametrize(
    "context",
    [
        {"previous_specialist": "apollo", "pipeline_stage": 2},
        {"previous_ai": "apollo", "pipeline_position": 2},
        {"previous_specialist": "apollo", "previous_ai": "x", "pipeline_stage": 2, "pipeline_position": 9},
    ],
)
def test_both_spellings_of_the_context_are_read(context: dict[str, Any]) -> None:
    request = decode_request(json.dumps({"content": "x", "context": context}).encode())
    assert isinstance(request, Chat)
    read = read_context(request.context)
    assert (read.author, read.stage) == ("apollo", 2)


def test_unknown_keys_of_the_context_are_kept() -> None:
    context = {"session_id": "s", "mine": {"a": [1, None]}, "big": 10**30}
    request = decode_request(json.dumps({"content": "x", "context": context}).encode())
    assert isinstance(request, Chat)
    assert request.context == context


def test_no_context_is_an_empty_one() -> None:
    assert read_context(None) == messages.Context()


@pytest.mark.parametrize("request_id", ["r1", "", "😀", 0, -1, 2**63, 2**64, -(10**30)])
def test_any_string_or_integer_is_a_request_id_and_can_be_echoed(request_id: str | int) -> None:
    request = decode_request(json.dumps({"type": "ping", "request_id": request_id}).encode())
    assert request.request_id == request_id
    assert type(request.request_id) is type(request_id)
    reply = messages.Heartbeat(request_id=request.request_id)
    assert json.loads(encode(reply))["request_id"] == request_id


def test_null_is_a_missing_request_id() -> None:
    assert decode_request(b'{"type":"ping","request_id":null}').request_id is None


# -- what is refused --------------------------------------------------------------------------------

BAD_JSON = [
    (b"", "byte 0 "),
    (b"{", "byte 1 "),
    (b"{,}", "byte 1 "),
    (b'{"type":"ping"', "byte 14 "),
    (b'{"type":"ping', "byte 13 "),
    (b'{"type" "ping"}', "byte 8 "),
    (b'{"type":"ping",}', "byte 15 "),
    (b'{"type":"ping"} x', "byte 16 "),
    (b'{"type":"ping"}{}', "byte 15 "),
    (b"{type:1}", "byte 1 "),
    (b"{'type':1}", "byte 1 "),
    (b'{"type":"ping","x":NaN}', "byte 19 "),
    (b'{"type":"ping","x":Infinity}', "byte 19 "),
    (b'{"type":"ping","x":-Infinity}', "byte 20 "),
    (b'{"type":"ping","x":01}', "byte 20 "),
    (b'{"type":"ping","x":nul}', "byte 20 "),
    (b'{"content":"a\x01"}', "byte 13 "),
    (b'{"content":"\\q"}', "byte 13 "),
    (b'{"content":"\\uzzzz"}', "byte "),
    (b'{"content":"\xff"}', "UTF-8 at byte 12:"),
    (b'{"content":"\xc3"}', "UTF-8 at byte 12:"),
    (b'{"content":"\xc0\xaf"}', "UTF-8 at byte 12:"),  # over-long form of a slash
    (b'{"content":"ok\xed\xa0\x80"}', "UTF-8 at byte 14:"),  # a surrogate as three bytes
    (b'{"content":"\xf4\x90\x80\x80"}', "UTF-8 at byte 12:"),  # beyond U+10FFFF
    (b'{"unknown":"\xff"}', "UTF-8 at byte 12:"),
    (b'\xef\xbb\xbf{"content":"x"}', "byte 0 "),  # a byte order mark
    (b'{"content":"\\udc00"}', "byte 18 "),  # behind the escape: where the decoder noticed
    (b'{"content":"\\ud800 and more"}', "byte "),
    # a half at the very end: the decoder takes the line for truncated
    (b'{"content":"\\ud800"}', "byte 12 "),
    (b'{"content":"x\\uD83Dx"}', "byte 13 "),
    (b'{"content":"\\\\\\ud800"}', "byte 14 "),
    (b'{"content":"\\ud800\\n"}', "byte 12 "),
    # really truncated, though a surrogate is near
    (b'{"content":"\\ud83d', "byte 18 "),
    (b'{"content":"\\ud83d\\', "byte 19 "),
    (b'{"content":"\\ud83d\\ude0', "byte 23 "),
    (b'{"content":"\\\\ud800', "byte 19 "),
    (b'{"content":"x","context":{"a":' + DEEP + b"}}", "nested too deeply"),
    (b'{"content":"x","unknown":' + DEEP + b"}", "nested too deeply"),
    (b'{"type":' + DEEP + b"}", "nested too deeply"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("line", "place"), BAD_JSON, ids=lambda value: repr(value[:40]))
def test_what_is_not_json_is_refused_with_the_byte(line: bytes, place: str) -> None:
    error = refusal(line)
    assert error.reason.code == "bad_json"
    assert place in str(error.reason)
    assert error.request_id is None


BAD_REQUESTS = [
    (b"{}", '"type"'),
    (b'{"x":1}', '"type"'),
    (b'{"type":null}', "type:"),
    (b'{"type":null,"content":"x"}', "type:"),
    (b'{"type":5}', "type:"),
    (b'{"type":"ping","type":"chat","content":"b"}', "type:"),
    (b'{"type":["chat"],"content":"x"}', "type:"),
    (b'{"type":"chat"}', "content:"),
    (b'{"content":null}', "content:"),
    (b'{"message":null}', "content:"),
    (b'{"content":null,"message":null}', "content:"),
    (b'{"content":5}', "content:"),
    (b'{"content":["x"]}', "content:"),
    (b'{"content":"x","message":{}}', "message:"),
    (b'{"content":"x","stream":null}', "stream:"),
    (b'{"content":"x","stream":"yes"}', "stream:"),
    (b'{"content":"x","close":1}', "close:"),
    (b'{"content":"x","final":"half"}', "final:"),
    (b'{"content":"x","final":"a\\nb"}', "final:"),
    (b'{"content":"x","context":[]}', "context:"),
    (b'{"content":"x","context":{"session_id":5}}', "context.session_id:"),
    (b'{"content":"x","context":{"memory_hints":"a"}}', "context.memory_hints:"),
    (b'{"content":"x","context":{"memory_hints":["a",null]}}', "context.memory_hints[1]:"),
    (b'{"content":"x","context":{"pipeline_stage":1.5}}', "context.pipeline_stage:"),
    (b'{"content":"x","context":{"pipeline_position":"2"}}', "context.pipeline_position:"),
    (b'{"content":"x","context":{"previous_ai":[]}}', "context.previous_ai:"),
    (b'{"content":"x","history":{}}', "history:"),
    (b'{"content":"x","history":["a"]}', "history[0]:"),
    (b'{"content":"x","history":[{"role":"user"}]}', "history[0]: object missing required field content"),
    (b'{"content":"x","history":[{"role":"king","content":"y"}]}', "history[0].role:"),
    (b'{"content":"x","options":[]}', "options:"),
    (b'{"content":"x","options":{"temperature":"hot"}}', "options.temperature:"),
    (b'{"content":"x","options":{"temperature":-1}}', "options.temperature:"),
    (b'{"content":"x","options":{"max_tokens":0}}', "options.max_tokens:"),
    (b'{"content":"x","options":{"stop":[1]}}', "options.stop[0]:"),
    (b'{"content":"x","options":{"think":"hard"}}', "options.think:"),
    (b'{"content":"x","options":{"format":"xml"}}', "options.format:"),
    (b'{"content":"x","options":{"seed":1.5}}', "options.seed:"),
    (b'{"content":"x","options":{"seed":1e400}}', "options.seed:"),
    (b'{"content":"x","temperature":1e400}', "temperature:"),
    (b'{"content":"x","max_tokens":-5}', "max_tokens:"),
    (b'{"content":"x","deadline":0}', "deadline:"),
    (b'{"type":"history","limit":0}', "limit:"),
    (b'{"type":"history","limit":10001}', "limit:"),
    (b'{"type":"history","limit":null}', "limit:"),
    (b'{"type":"reset","session_id":1}', "session_id:"),
    (b'{"type":"embed"}', "input"),
    (b'{"type":"embed","input":null}', "input:"),
    (b'{"type":"embed","input":["a",1]}', "input[1]:"),
    (b'{"type":"cancel"}', "target:"),
    (b'{"type":"cancel","target":null}', "target:"),
    (b'{"type":"cancel","target":1.5}', "target:"),
    (b'{"type":"ping","timestamp":[]}', "timestamp:"),
    (b"[1]", "expected object"),
    (b'"x"', "expected object"),
    (b"null", "expected object"),
]


@pytest.mark.parametrize(("line", "place"), BAD_REQUESTS, ids=lambda value: repr(value[:60]))
def test_the_wrong_shape_is_refused_with_the_field(line: bytes, place: str) -> None:
    error = refusal(line)
    assert error.reason.code == "bad_request"
    assert place in str(error.reason).replace("Expected", "expected")


@pytest.mark.parametrize("line", [line for line, _ in BAD_REQUESTS if line.startswith(b"{") and line != b"{}"])
def test_a_refusal_carries_the_request_id_wherever_it_stands(line: bytes) -> None:
    assert refusal(b'{"request_id":"r1",' + line[1:]).request_id == "r1"
    assert refusal(line[:-1] + b',"request_id":17}').request_id == 17


@pytest.mark.parametrize("value", [b"1.5", b"true", b"[]", b'{"a":1}', b"9" * 5000])
@pytest.mark.parametrize("rest", [b'"type":"ping"', b'"content":"x"'])
def test_a_request_id_of_the_wrong_type_is_refused_and_not_echoed(value: bytes, rest: bytes) -> None:
    error = refusal(b'{"request_id":' + value + b"," + rest + b"}")
    assert error.reason.code == "bad_request"
    assert str(error.reason).startswith("request_id: ")
    assert error.request_id is None


@pytest.mark.parametrize("kind", ["", "chta", "Chat", "pong", "status", "x" * 1_000_000])
def test_an_unknown_type_is_answered_with_the_known_ones(kind: str) -> None:
    error = refusal(json.dumps({"type": kind, "content": "x", "request_id": "r1"}).encode())
    assert error.reason.code == "unknown_type"
    assert error.request_id == "r1"
    assert all(known in str(error.reason) for known in REQUEST_TYPES)
    assert len(str(error.reason)) < 300


def test_a_misspelt_type_gets_a_hint() -> None:
    assert 'did you mean "chat"?' in str(refusal(b'{"type":"chta"}').reason)


def test_a_refusal_does_not_repeat_a_long_value() -> None:
    error = refusal(b'{"content":"x","final":"' + b"y" * 1_000_000 + b'"}')
    assert str(error.reason).startswith("final: invalid enum value")
    assert len(str(error.reason)) < 300


def test_a_refusal_becomes_an_error_line() -> None:
    error = refusal(b'{"content":5,"request_id":"r1"}')
    sent = json.loads(encode(error_reply(error.reason, error.request_id, "apollo-ci")))
    assert sent == {
        "type": "error",
        "request_id": "r1",
        "ai_id": "apollo-ci",
        "code": "bad_request",
        "error": str(error.reason),
        "partial": "",
    }


def test_a_wrong_context_is_refused_with_its_path() -> None:
    with pytest.raises(BadRequest, match=r"^context\.memory_hints\[0\]: "):
        read_context({"memory_hints": [1]})


@pytest.mark.parametrize("line", [b"", b"{}", b"hello", b'{"type":"nothing"}', b'{"type":"pong"}', b"\xff", b"[1]"])
def test_an_answer_that_cannot_be_read_is_a_wrong_reply(line: bytes) -> None:
    with pytest.raises(WrongReply, match="cannot be read"):
        decode_reply(line)


# -- anything at all --------------------------------------------------------------------------------

TOKENS = [
    b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\u", b"\\ud800", b"\\udc00", b"null", b"true", b"NaN",
    b"-1", b"1.5", b"1e999", b"9" * 40, b"9" * 5000, b"\xff", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80",
    b"\x00", b" ",
    b'"type"', b'"request_id"', b'"content"', b'"message"', b'"context"', b'"options"', b'"chat"', b'"ping"',
    b"[" * 300, b'{"a":' * 300, b'"request_id":{},', b'"type":null,', b'"content":null,', b"`", b"'",
]  # fmt: skip


def mutated(line: bytes, rng: random.Random) -> bytes:
    """The line after up to four cuts, insertions, repetitions or flipped bytes."""
    data = bytearray(line)
    for _ in range(rng.randint(1, 4)):
        one, two = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
        match rng.randrange(5):
            case 0:
                del data[one : min(two, one + 8)]
            case 1:
                data[one:one] = rng.choice(TOKENS)
            case 2:
                data[one:one] = data[one:two]
            case 3:
                data[one : one + 1] = bytes([rng.randrange(256)])
            case _:
                data[one : min(two, one + 12)] = rng.choice(TOKENS)
    return bytes(data)


def test_nothing_but_a_bad_line_escapes() -> None:
    rng = random.Random(45003)
    seeds = [line_of(one) for one in REQUESTS] + [line for line, _ in BAD_REQUESTS + BAD_JSON if len(line) < 1000]
    seen: dict[str, int] = {}
    for number in range(20_000):
        line = rng.randbytes(rng.randint(0, 60)) if number % 10 == 0 else mutated(rng.choice(seeds), rng)
        try:
            request = decode_request(line)
        except BadLine as error:
            outcome = error.reason.code
            sent = encode(error_reply(error.reason, error.request_id, "apollo-ci"))
            decode_reply(sent)  # the id was one that may be echoed
        else:
            outcome = "read"
            assert decode_request(line_of(request)) == request, line
        seen[outcome] = seen.get(outcome, 0) + 1
    assert set(seen) == {"read", "bad_json", "bad_request", "unknown_type"}
    assert min(seen.values()) > 100, seen


def test_a_request_that_is_refused_may_still_ask_for_the_connection_to_be_closed() -> None:
    with pytest.raises(BadLine) as refused:
        decode_request(b'{"type": "chat", "content": 42, "close": true}')
    assert refused.value.close
