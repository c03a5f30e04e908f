"""The same promises, kept by a real Ollama with tiny models.

Runs where an `ollama` binary is found (on the PATH, or named by CHORUS_TEST_OLLAMA) and
CHORUS_TEST_OLLAMA_MODELS names a models folder with `tiny`, `tiny-tied` (repeats one token, until the server
gives up without `done`) and `tiny-think`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import anyio
import pytest
from lookalikes.asking import QUICK, config_for, content, finish, question, running, steps_of, thinking, until
from ports import free_port

from daemon.backends.ollama import Ollama
from protocol.errors import BadRequest, ContextOverflow, EmptyAnswer, ModelMissing, Truncated
from protocol.messages import Turn

BINARY = os.environ.get("CHORUS_TEST_OLLAMA") or shutil.which("ollama")
MODELS = os.environ.get("CHORUS_TEST_OLLAMA_MODELS")

pytestmark = pytest.mark.skipif(
    not BINARY or not MODELS,
    reason="needs an ollama binary and CHORUS_TEST_OLLAMA_MODELS (a folder with tiny models)",
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of our own on a free port."""
    host = f"127.0.0.1:{free_port()}"
    home = tmp_path_factory.mktemp("ollama")
    settings = {"OLLAMA_HOST": host, "OLLAMA_MODELS": str(MODELS), "OLLAMA_NO_CLOUD": "1", "HOME": str(home)}
    with (home / "log").open("wb") as log:
        server = subprocess.Popen([str(BINARY), "serve"], env={**os.environ, **settings}, stdout=log, stderr=log)
    try:
        yield f"http://{host}"
    finally:
        server.terminate()
        server.wait(timeout=10)


async def ready(url: str, state: Path, model: str = "tiny") -> Ollama:
    # Its threads spin while they wait for each other: on a busy machine, two take a hundred times as long as one.
    backend = Ollama(config_for(url, state, model=model, profile={"num_thread": 1}), QUICK)
    async with running(backend):
        await until(lambda: backend.state.state in ("ready", "model_missing"))
    return backend


async def test_it_answers_with_its_figures(url: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        backend = await ready(url, tmp_path)
        async with running(backend):
            steps = await steps_of(backend, question(seed=1))
            await until(lambda: backend.context_length)
    assert content(steps)
    assert finish(steps).prompt_tokens
    assert finish(steps).tokens_per_second


async def test_max_tokens_ends_in_length(url: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with running(await ready(url, tmp_path)) as backend:
            steps = await steps_of(backend, question(max_tokens=2, seed=1))
    assert finish(steps).done_reason == "length"
    assert finish(steps).completion_tokens == 2


async def test_an_answer_that_ends_without_done_is_truncated(url: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with running(await ready(url, tmp_path, "tiny-tied")) as backend:
            with pytest.raises(Truncated):
                await steps_of(backend)


async def test_a_prompt_that_does_not_fit_is_refused(url: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with running(await ready(url, tmp_path)) as backend:
            with pytest.raises(ContextOverflow):
                await steps_of(backend, question("word " * 50_000))


async def test_thinking_is_off_unless_asked_for(url: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with running(await ready(url, tmp_path, "tiny-think")) as backend:
            steps = await steps_of(backend, question(seed=3))
            assert not thinking(steps)
            # This one never leaves its thoughts.
            with pytest.raises(EmptyAnswer):
                await steps_of(backend, question(think=True, seed=3))
        async with running(await ready(url, tmp_path)) as backend:
            with pytest.raises(BadRequest, match="cannot think"):
                await steps_of(backend, question(think=True))


async def test_a_missing_model_says_how_to_get_it(url: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with running(await ready(url, tmp_path, "nope")) as backend:
            assert backend.state.state == "model_missing"
            with pytest.raises(ModelMissing, match="ollama pull nope"):
                await steps_of(backend)


async def test_a_conversation_goes_on(url: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with running(await ready(url, tmp_path)) as backend:
            short = finish(await steps_of(backend, question()))
            long = finish(await steps_of(backend, question("And?", Turn("user", "Hi"), Turn("assistant", "Hello"))))
    assert (long.prompt_tokens or 0) > (short.prompt_tokens or 0)


async def test_vectors_have_one_length(url: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with running(await ready(url, tmp_path)) as backend:
            vectors, _ = await backend.embed(["one", "two"], None)
    assert len(vectors) == 2
    assert len(vectors[0]) == len(vectors[1]) > 0


# The last one: an Ollama that is stuck afterwards must not spoil the others.
async def test_leaving_frees_the_model_at_once(url: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with running(await ready(url, tmp_path)) as backend:
            answer = backend.generate(question(max_tokens=100_000, seed=1))
            assert isinstance(answer, AsyncGenerator)
            await anext(answer)
            await answer.aclose()
            try:
                with anyio.fail_after(20):
                    assert content(await steps_of(backend, question(seed=1)))
            except TimeoutError:
                # About one disconnect in 200 with this model of 5000 tokens a second: the server's goroutine is left
                # writing to a channel that nobody reads, and keeps the only slot (ollama#17131).
                pytest.xfail("Ollama has leaked its slot")
