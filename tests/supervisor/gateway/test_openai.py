"""OpenAI's protocol as bytes: what its clients never show of it, and the form of every failure below /v1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from gatewaying import gateway
from scripted import EchoBackend, ScriptedBackend
from serving import until

from protocol.errors import BadRequest, Forbidden, Internal, ProtocolError
from supervisor.gateway.openai_wire import as_error
from supervisor.gateway.problem import TooMany, Unauthorized, failure_of, response

HI: list[Any] = [{"role": "user", "content": "hi"}]


async def test_a_slow_reader_is_given_every_piece(tmp_path: Path) -> None:
    """Its clients know no word for pieces that are gone."""
    backend = ScriptedBackend(answer=lambda _: [f"{number} " for number in range(20_000)])
    body = {"model": "apollo", "messages": HI, "stream": True}
    async with gateway(tmp_path, apollo=backend) as served:
        with anyio.fail_after(30):
            async with served.events("POST", "/v1/chat/completions", json=body) as events:
                stream = await served.house.streams.find(events.stream_id)
                await until(lambda: stream.is_over)
                [reader] = stream.readers
                assert reader.lost
                said = [event.data for event in await events.all()]
    pieces = [json.loads(data)["choices"][0]["delta"].get("content", "") for data in said[:-1]]
    assert "".join(pieces) == "".join(f"{number} " for number in range(20_000))
    assert said[-1] == "[DONE]"


async def test_events_have_no_names(tmp_path: Path) -> None:
    body = {"model": "apollo", "messages": HI, "stream": True, "stream_options": {"include_usage": True}}
    async with gateway(tmp_path, apollo=ScriptedBackend("Hello")) as served:
        with anyio.fail_after(5):
            async with served.events("POST", "/v1/chat/completions", json=body) as events:
                blocks = [block async for block in events.blocks()]
    assert not any("event:" in block for block in blocks)
    assert sum('"usage":null' in block for block in blocks) == len(blocks) - 2  # all but the usage's own and [DONE]
    assert all(line.partition(":")[0] in ("", "retry", "id", "data") for block in blocks for line in block.split("\n"))


async def test_what_no_route_answers_has_this_protocols_form_too(tmp_path: Path) -> None:
    async with gateway(tmp_path, {"max_body_bytes": 1024}, apollo=EchoBackend()) as served:
        for method, path, how, status, code in (
            ("GET", "/v1/nothing", {}, 404, "not_found"),
            ("DELETE", "/v1/models", {}, 405, "method_not_allowed"),
            ("POST", "/v1/chat/completions", {"data": b"{"}, 400, "bad_json"),
            ("POST", "/v1/chat/completions", {"data": b" " * 2000}, 413, "too_large"),
        ):
            got, told, response = await served.request(method, path, **how)
            assert (got, told["error"]["code"], told["error"]["type"]) == (status, code, "invalid_request_error")
        got, told, response = await served.request("DELETE", "/v1/models")
        assert response.headers["Allow"] == "GET,HEAD"
        got, told, _ = await served.request("GET", "/nothing")
        assert (got, told["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (Unauthorized("no key"), 401, "authentication_error"),
        (Forbidden("not this one"), 403, "permission_error"),
        (TooMany("wait", retry_after=2.5), 429, "rate_limit_error"),
        (BadRequest("a: wrong"), 400, "invalid_request_error"),
        (Internal("ours"), 500, "server_error"),
    ],
)
def test_every_failure_has_the_status_that_clients_sort_by(error: ProtocolError, status: int, kind: str) -> None:
    answer = response(failure_of(error), as_error)
    assert isinstance(answer.body, bytes)
    told = json.loads(answer.body)["error"]
    assert (answer.status, told["type"], told["message"]) == (status, kind, error.sentence)
    assert answer.headers.get("Retry-After") == ("3" if status == 429 else None)
    assert answer.headers.get("WWW-Authenticate") == ('Bearer realm="chorus"' if status == 401 else None)
