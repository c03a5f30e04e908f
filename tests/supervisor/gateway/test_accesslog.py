"""The line in the log for each request: what is in it, and what never is."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import anyio
import pytest
from gatewaying import gateway
from scripted import EchoBackend, ScriptedBackend
from serving import until

CHAT = "/api/chat/apollo"


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "chorus.gateway")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if re.search(r" \d+ ms \d+ bytes", one.getMessage())]


async def test_one_line_says_what_was_asked_and_how_it_went(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        key_id, text = served.key()
        with anyio.fail_after(5):
            await served.request("POST", CHAT, json={"message": "a secret"}, headers={"X-API-Key": text})
            await served.request("POST", CHAT, data=b"{")
            async with served.events("GET", f"{CHAT}/stream?message=another+secret") as events:
                await events.all()
    whole, refused, streamed = lines(caplog)
    assert re.fullmatch(rf"POST {CHAT} 200 \d+ ms \d+ bytes key {key_id}", whole)
    assert re.fullmatch(rf"POST {CHAT} 400 \d+ ms \d+ bytes", refused)
    assert re.fullmatch(rf"GET {CHAT}/stream\?… 200 \d+ ms \d+ bytes", streamed)
    assert " 0 bytes" not in whole + refused + streamed
    assert "secret" not in caplog.text
    assert text not in caplog.text


async def test_what_was_refused_at_the_door_has_a_line_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            await served.request("POST", CHAT, headers={"Host": "evil.example"})
            await served.request("POST", CHAT, headers={"Origin": "null"})
            await served.request("POST", CHAT, headers={"X-API-Key": "chorus_x"})
    assert [line.split()[2] for line in lines(caplog)] == ["421", "403", "401"]


async def test_probes_are_no_news_while_all_is_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            for _ in range(3):
                assert (await served.get("/health"))["status"] == "healthy"
            assert lines(caplog) == []
            await served.request("GET", "/health", headers={"Host": "evil.example"})
    assert len(lines(caplog)) == 1


async def test_nothing_from_outside_reaches_the_log_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        _, text = served.key()
        with anyio.fail_after(5):
            for target in (
                "/a%0d%0aPOST%20/forged%20200",
                "/a%1b[31mred",
                "/" + "long" * 500,
                f"/{text}",
                f"//user:{text}@127.0.0.1/",
                f"http://127.0.0.1/{text}?{text}",
            ):
                await served.raw(f"GET {target} HTTP/1.1", "Host: 127.0.0.1")
    assert len(lines(caplog)) == 6
    assert all(line.replace("…", "").isascii() and line.isprintable() and len(line) < 300 for line in lines(caplog))
    assert text.rpartition("_")[2] not in caplog.text


async def test_a_caller_who_left_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = ScriptedBackend("Hel", asyncio.Event())
    async with gateway(tmp_path, apollo=backend) as served:
        with anyio.fail_after(5):
            async with served.events("POST", f"{CHAT}/stream", json={"message": "hi"}) as events:
                await events.until("token")
            await until(lambda: bool(lines(caplog)))
    [line] = lines(caplog)
    assert line.startswith(f"POST {CHAT}/stream 499 ")
    assert not [one for one in caplog.records if one.levelno > logging.INFO]


async def test_what_is_no_http_is_one_line_without_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "chorus_12345678_" + "a" * 9000
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            for nonsense in (
                ("hello",),
                ("\x16\x03\x01\x02\x00",),
                ("GET / HTTP/1.1", "Host: 127.0.0.1", f"X-API-Key: {secret}"),
                (f"GET /{secret} HTTP/1.1", "Host: 127.0.0.1"),
                ("GET / HTTP/1.1", "Host: a", "Host: b"),
                ("POST / HTTP/1.1", "Host: a", "Content-Length: 1", "Transfer-Encoding: chunked"),
                ("GET / HTTP/1.1", *(f"X-{number}: x" for number in range(500))),
            ):
                assert (await served.raw(*nonsense)).status == 400
    told = [one for one in caplog.records if one.name == "chorus.gateway.http"]
    assert len(told) == 5  # what begins with no method of HTTP is not even worth that
    assert {one.levelno for one in told} == {logging.INFO}
    assert not any(one.exc_info for one in told)
    assert "aaaa" not in caplog.text


async def test_an_expectation_that_is_no_text_is_a_line_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The library stumbles over it before anything of ours is asked."""
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            assert (await served.raw("GET /health HTTP/1.1", "Host: 127.0.0.1", b"Expect: \xff")).status >= 400
    [told] = [one for one in caplog.records if one.name == "chorus.gateway.http"]
    assert told.levelno == logging.INFO
    assert not told.exc_info
