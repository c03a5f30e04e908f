"""What foreign failures become, and what their sentences say."""

from __future__ import annotations

import pytest

from daemon.backends.http import Refusal, Server, refused, retry_after, said_by
from protocol.errors import (
    BackendDown,
    BadRequest,
    Busy,
    ContextOverflow,
    ModelError,
    ModelMissing,
    ProtocolError,
)

LLAMA = (
    rb'{"error":"{\"error\":{\"code\":400,\"message\":\"request (10009 tokens) exceeds the available context size '
    rb'(1024 tokens), try increasing it\",\"type\":\"exceed_context_size_error\"}}"}'
)


@pytest.mark.parametrize(
    ("status", "body", "expected", "says"),
    [
        (404, b'{"error":"model \'x\' not found"}', ModelMissing, "ollama pull x"),
        (404, b'{"error":"model \\"x\\" not found, try pulling it first"}', ModelMissing, "ollama pull x"),
        (404, b"404 page not found", BackendDown, "backend.url"),
        (400, LLAMA, ContextOverflow, "exceeds the available context size (1024 tokens)"),
        (400, b'{"error":"the input length exceeds the context length"}', ContextOverflow, "reset"),
        (400, b'{"error":"\\"x\\" does not support tools"}', BadRequest, '"x" does not support tools'),
        (422, b'{"detail":"bad field"}', BadRequest, "bad field"),
        (401, b'{"error":{"message":"Invalid API Key"}}', BackendDown, "api_key_file"),
        (403, b"", BackendDown, "OLLAMA_ORIGINS"),
        (403, b'{"error":"not for you"}', BadRequest, "not for you"),
        (301, b"", BackendDown, "backend.url"),
        (502, b"<html>bad gateway</html>", BackendDown, "backend.url"),
        (500, b'{"error":"llama runner process has terminated: exit status 2"}', ModelError, "exit status 2"),
        (503, b'{"error":"server busy, please try again."}', Busy, "server busy"),
        (429, b"", Busy, "try again in 1 s"),
    ],
)
def test_each_status_has_its_meaning(status: int, body: bytes, expected: type[ProtocolError], says: str) -> None:
    error = refused(Refusal(status, said_by(body)), Server("http://x:1"), "x")
    assert type(error) is expected
    assert says in error.sentence


def test_a_busy_server_says_when_to_come_again() -> None:
    assert refused(Refusal(503, "", 7.0), Server(""), "x").retry_after == 7.0
    assert refused(Refusal(503, ""), Server(""), "x").retry_after == 1.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        (None, None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("-1", None),
        ("nan", None),
        ("9e9", 3600.0),
    ],
)
def test_retry_after_is_read_in_seconds(header: str | None, seconds: float | None) -> None:
    assert retry_after(header) == seconds


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (LLAMA, "request (10009 tokens) exceeds the available context size (1024 tokens), try increasing it"),
        (b'{"error":"plain"}', "plain"),
        (b'{"error":{"message":"inside"}}', "inside"),
        (b'{"error":{"code":1}}', '{"code":1}'),
        (b'{"error":"{not json"}', "{not json"),
        (b'{"message":"alone"}', "alone"),
        (b"no json", "no json"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"", ""),
        (b"[" * 5000, "[" * 5000),
    ],
)
def test_the_sentence_in_an_error_body_is_found(body: bytes, said: str) -> None:
    assert said_by(body) == said


def test_a_page_full_of_error_is_cut_short() -> None:
    assert len(refused(Refusal(500, "x" * 9999), Server("http://x"), "m").sentence) < 700
