"""From the model server's socket to the client's: what goes wrong behind reaches the user under its code, with what had come.

The model server is a look-alike over a real socket, the specialist is the real one, the client speaks the wire.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from lookalikes.asking import QUICK, config_for
from lookalikes.ollama import OllamaLookalike, Refusal, Script
from serving import Served, serving, until

from daemon.backends.ollama import Ollama

NO_MODEL = "model 'tiny' not found"
HUGE = "x" * 300_000

# What the model server does; the code that the user is given; what had arrived by then.
FAILURES = [
    (Script(refusal=Refusal(404, NO_MODEL)), "model_missing", ""),
    (Script(refusal=Refusal(503, "server busy, please try again")), "busy", ""),
    (Script(refusal=Refusal(500, "llama runner process has terminated")), "model_error", ""),
    (Script(refusal=Refusal(400, "the input length exceeds the context length")), "context_overflow", ""),
    (Script(ending="error", after=2), "model_error", "Hello,"),
    (Script(ending="eof", after=2), "truncated", "Hello,"),
    (Script(ending="reset", after=2), "model_error", "Hello,"),
    (Script(ending="reset", after=0), "backend_down", ""),
    (Script(ending="stall", after=2), "stalled", "Hello,"),
    (Script(ending="stall", after=0), "stalled", ""),
    (Script(tokens=()), "empty_answer", ""),
    (Script(tokens=(), thinking=("Hm",)), "empty_answer", ""),
]


@asynccontextmanager
async def specialist(tmp_path: Path, script: Script, **limits: Any) -> AsyncGenerator[tuple[Served, OllamaLookalike]]:
    """A specialist that answers from a look-alike with one loaded model."""
    async with OllamaLookalike(script) as server:
        server.loaded.update(server.models)
        backend = Ollama(config_for(server.url, tmp_path, model="tiny", **limits), QUICK)
        async with serving(backend, tmp_path) as served:
            await until(lambda: backend.state.state == "ready")
            yield served, server


@pytest.mark.parametrize(("script", "code", "partial"), FAILURES)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_behind_reaches_the_user_as_its_code(
    tmp_path: Path, script: Script, code: str, partial: str, stream: bool
) -> None:
    with anyio.fail_after(10):
        async with specialist(tmp_path, script, first_byte=0.3, silence=0.3) as (served, _):
            client = await served.connect()
            client.send({"type": "chat", "request_id": 1, "content": "Why?", "stream": stream, "close": True})
            *before, last = await client.replies()
    assert (last["type"], last["code"], last["partial"]) == ("stream_error" if stream else "error", code, partial)
    assert "".join(one.get("content", "") for one in before) == (partial if stream else "")


async def test_a_failure_in_plain_text_is_a_line_of_its_own_behind_what_had_come(tmp_path: Path) -> None:
    with anyio.fail_after(10):
        async with specialist(tmp_path, Script(ending="eof", after=2)) as (served, _):
            client = await served.connect()
            client.send("Why?")
            client.end()
            answer, error = (await client.rest()).decode().splitlines()
    assert answer == "Hello,"
    assert error.startswith("error: ")


async def test_a_model_server_that_dies_is_said_to_be_down_and_nothing_is_echoed(tmp_path: Path) -> None:
    with anyio.fail_after(10):
        async with specialist(tmp_path, Script()) as (served, server):
            client = await served.connect()
            assert (await client.ask({"content": "Why?", "request_id": 1}))["content"] == "Hello, world"
            await server.refuse()
            refused = await client.ask({"content": "Why?", "request_id": 2})
            assert (refused["code"], refused["partial"]) == ("backend_down", "")
            assert "ollama serve" in refused["error"]
            assert (await client.ask({"type": "health"}))["status"] == "degraded"


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
async def test_text_cut_inside_a_character_arrives_whole(tmp_path: Path, cut: int) -> None:
    with anyio.fail_after(10):
        async with specialist(tmp_path, Script(tokens=("na\u00efve ", "\U0001f600", "\u4e2d"), cut=cut)) as (served, _):
            client = await served.connect()
            assert (await client.ask({"content": "Why?"}))["content"] == "na\u00efve \U0001f600\u4e2d"


async def test_a_token_of_300_kilobytes_is_one_token(tmp_path: Path) -> None:
    with anyio.fail_after(10):
        async with specialist(tmp_path, Script(tokens=(HUGE,))) as (served, _):
            client = await served.connect()
            assert (await client.ask({"content": "Why?"}))["content"] == HUGE


async def test_thinking_is_told_apart_from_the_answer(tmp_path: Path) -> None:
    with anyio.fail_after(10):
        async with specialist(tmp_path, Script(thinking=("Hm", "."))) as (served, _):
            client = await served.connect()
            answer = await client.ask({"content": "Why?"})
    assert (answer["content"], answer["thinking"]) == ("Hello, world", "Hm.")


async def test_a_user_who_loses_patience_does_not_abort_the_load(tmp_path: Path) -> None:
    with anyio.fail_after(10):
        async with OllamaLookalike(Script(slow_load=True)) as server:
            backend = Ollama(config_for(server.url, tmp_path, model="tiny"), QUICK)
            async with serving(backend, tmp_path) as served:
                client = await served.connect()
                refused = await client.ask({"content": "Why?", "deadline": 0.1, "request_id": 1})
                assert refused["code"] == "deadline"
                server.let_load()
                assert (await client.ask({"content": "Why?", "request_id": 2}))["content"] == "Hello, world"
            assert (server.loads_begun, server.loads_aborted) == (1, 0)


# A client that asks and then only waits, so that it can be killed: it never says goodbye.
CLIENT = """
import socket, sys
to = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
to.sendall(b'{"content": "Why?", "stream": true, "request_id": 1}\\n')
if sys.argv[2] == "half-closed":
    to.shutdown(socket.SHUT_WR)
while to.recv(65536):
    pass
"""


@pytest.mark.parametrize("half_closed", ["half-closed", "open"])
@pytest.mark.parametrize("script", [Script(hold=True), Script(ending="stall", after=2)], ids=["before", "middle"])
async def test_a_client_that_is_killed_ends_its_generation(tmp_path: Path, script: Script, half_closed: str) -> None:
    with anyio.fail_after(10):
        async with specialist(tmp_path, script) as (served, server):
            client = await anyio.open_process([sys.executable, "-c", CLIENT, str(served.port), half_closed])
            async with client:
                await until(server.asked)
                client.kill()
            await server.asked()[-1].gone.wait()


@pytest.mark.parametrize("script", [Script(hold=True), Script(ending="stall", after=2)], ids=["before", "middle"])
async def test_a_cancel_ends_the_generation_and_keeps_what_had_come(tmp_path: Path, script: Script) -> None:
    with anyio.fail_after(10):
        async with specialist(tmp_path, script) as (served, server):
            client = await served.connect()
            client.send({"content": "Why?", "stream": True, "request_id": 1})
            await until(server.asked)
            if script.after:
                await client.until("stream_chunk")
            client.send({"type": "cancel", "target": 1, "request_id": 2})
            end = (await client.until("stream_end"))[-1]
            assert end["done_reason"] == "cancelled"
            await server.asked()[-1].gone.wait()
