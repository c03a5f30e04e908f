"""What becomes of everything that can go wrong between us and Ollama, over a real socket."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from lookalikes.asking import (
    QUICK,
    config_for,
    content,
    question,
    running,
    steps_of,
    text_of,
)
from lookalikes.ollama import OllamaLookalike, Refusal, Script

from daemon.backends import Step
from daemon.backends.ollama import Ollama
from protocol.errors import (
    BackendDown,
    BadRequest,
    Busy,
    ContextOverflow,
    EmptyAnswer,
    ModelError,
    ModelMissing,
    ProtocolError,
    Stalled,
    Truncated,
)


async def failure(script: Script, state: Path, **changes: float) -> tuple[ProtocolError, list[Step]]:
    """How the question fails, and what had come before."""
    steps: list[Step] = []
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(script) as server,
            running(Ollama(config_for(server.url, state, **changes), QUICK)) as backend,
        ):
            try:
                async for step in backend.generate(question()):
                    steps.append(step)  # noqa: PERF401 what came before the failure counts
            except ProtocolError as error:
                return error, steps
    raise AssertionError("it did not fail")


@pytest.mark.parametrize(
    ("ending", "after", "expected"),
    [
        ("eof", None, Truncated),
        ("eof", 0, Truncated),
        ("error", None, ModelError),
        ("error", 0, ModelError),
        ("reset", None, ModelError),
        ("close", None, ModelError),
        ("reset", 0, BackendDown),
        ("close", 0, BackendDown),
        ("garbage", None, ModelError),
    ],
)
async def test_whatever_is_no_done_is_a_failure(
    tmp_path: Path, ending: str, after: int | None, expected: type[ProtocolError]
) -> None:
    error, steps = await failure(Script(ending=ending, after=after), tmp_path)  # type: ignore[arg-type]
    assert type(error) is expected
    assert error.partial == ""
    assert content(steps) == ("" if after == 0 else "Hello, world")


async def test_an_error_line_says_what_the_server_said(tmp_path: Path) -> None:
    error, _ = await failure(Script(ending="error"), tmp_path)
    assert "an error was encountered while running the model: boom" in error.sentence


@pytest.mark.parametrize(
    ("refusal", "expected", "says"),
    [
        (Refusal(503, "server busy, please try again.", {"Retry-After": "3"}), Busy, "server busy"),
        (Refusal(429), Busy, "try again in 1 s"),
        (Refusal(500, "llama runner process has terminated"), ModelError, "has terminated"),
        (Refusal(400, "the input length exceeds the context length"), ContextOverflow, "context length"),
        (Refusal(400, "invalid model name"), BadRequest, "invalid model name"),
        (Refusal(403, raw=b""), BackendDown, "OLLAMA_ORIGINS"),
        (Refusal(404, "model 'tiny' not found"), ModelMissing, "ollama pull tiny"),
        (Refusal(307, headers={"Location": "http://127.0.0.1:1/"}), BackendDown, "307"),
    ],
)
async def test_a_refusal_becomes_our_error(
    tmp_path: Path, refusal: Refusal, expected: type[ProtocolError], says: str
) -> None:
    error, steps = await failure(Script(refusal=refusal), tmp_path)
    assert type(error) is expected
    assert says in error.sentence
    assert content(steps) == ""
    assert error.retry_after == (None if expected is not Busy else 3.0 if refusal.headers else 1.0)


async def test_a_busy_server_is_still_a_ready_one(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(Script(refusal=Refusal(503))) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            with pytest.raises(Busy):
                await steps_of(backend)
            assert backend.state.state == "ready"


@pytest.mark.parametrize(
    ("tokens", "thinking_tokens", "reason", "says"),
    [
        ((), (), "stop", "without a single character"),
        ((), ("hm",), "stop", "said nothing"),
        (("<think>hm",), (), "length", "raise max_tokens"),
    ],
)
async def test_done_without_content_is_an_empty_answer(
    tmp_path: Path, tokens: tuple[str, ...], thinking_tokens: tuple[str, ...], reason: str, says: str
) -> None:
    error, steps = await failure(Script(tokens=tokens, thinking=thinking_tokens, done_reason=reason), tmp_path)
    assert type(error) is EmptyAnswer
    assert says in error.sentence
    assert content(steps) == ""


async def test_no_first_byte_in_time_is_stalled(tmp_path: Path) -> None:
    error, _ = await failure(Script(ending="stall", after=0), tmp_path, first_byte=0.1)
    assert type(error) is Stalled
    assert "limits.first_byte" in error.sentence


async def test_silence_in_the_middle_is_stalled(tmp_path: Path) -> None:
    error, steps = await failure(Script(ending="stall"), tmp_path, silence=0.1)
    assert type(error) is Stalled
    assert "limits.silence" in error.sentence
    assert content(steps) == "Hello, world"


async def test_a_slow_reader_is_not_the_servers_silence(tmp_path: Path) -> None:
    steps: list[Step] = []
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(Script(rate=30.0)) as server,
            running(Ollama(config_for(server.url, tmp_path, silence=0.15), QUICK)) as backend,
        ):
            async for step in backend.generate(question()):
                with anyio.move_on_after(0.0 if steps else 0.25):
                    await anyio.Event().wait()
                steps.append(step)
    assert content(steps) == "Hello, world"


async def test_an_old_server_without_chat_is_asked_by_generate_from_then_on(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(Script(has_chat=False)) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            assert await text_of(backend) == "Hello, world"
            assert await text_of(backend) == "Hello, world"
            assert [one.path for one in server.requests].count("/api/chat") == 1
            assert server.asked("/api/generate")[-1].body["prompt"] == "Why?"


async def test_a_server_with_neither_path_is_no_model_server(tmp_path: Path) -> None:
    script = Script(has_chat=False, refusal=Refusal(404, raw=b"404 page not found"))
    error, _ = await failure(script, tmp_path)
    assert type(error) is BackendDown
