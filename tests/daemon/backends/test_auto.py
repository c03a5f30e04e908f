"""How a specialist finds out where answers come from, and that it does so only once."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest
from lookalikes.asking import QUICK, config_for, question, running, steps_of, text_of, until
from lookalikes.ollama import Model, OllamaLookalike

from daemon.backends.auto import Auto
from daemon.backends.builtin import Builtin
from daemon.backends.ollama import Ollama
from daemon.backends.open import open_backend
from daemon.backends.openai_compatible import OpenAICompatible
from protocol.errors import BackendDown


def remember_one(state: Path) -> None:
    (state / "backend.json").write_text('{"url":"http://elsewhere:1","model":"m","seen":true}')


async def test_without_any_model_server_the_echo_answers(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with OllamaLookalike() as server:
            await server.refuse()
            async with running(Auto(config_for(server.url, tmp_path, pace=9999.0), QUICK)) as backend:
                assert (backend.kind, backend.model, backend.state.state) == ("builtin", "builtin", "ready")
                assert backend.note is not None
                assert "not a language model" in await text_of(backend)
    assert not (tmp_path / "backend.json").exists()


async def test_it_moves_as_soon_as_a_model_server_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with anyio.fail_after(5):
        async with OllamaLookalike() as server:
            await server.refuse()
            async with running(Auto(config_for(server.url, tmp_path), QUICK)) as backend:
                assert backend.kind == "builtin"
                await server.listen()
                await until(lambda: backend.kind == "ollama")
                assert await text_of(backend) == "Hello, world"
                assert (backend.model, backend.note) == ("tiny:latest", None)
            assert caplog.text.count("a model server answers at") == 1
            assert json.loads((tmp_path / "backend.json").read_bytes())["seen"] is True


async def test_a_model_server_that_is_there_answers_the_first_question_too(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with OllamaLookalike() as server, running(Auto(config_for(server.url, tmp_path))) as backend:
            assert backend.kind == "ollama"
            assert await text_of(backend) == "Hello, world"


async def test_a_model_server_without_a_model_is_not_enough(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(models={}) as server,
            running(Auto(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            await until(lambda: sum(one.path == "/api/tags" for one in server.requests) >= 2)
            assert backend.kind == "builtin"
            server.models["tiny:latest"] = Model()
            await until(lambda: backend.kind == "ollama")


async def test_the_move_is_for_good(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike() as server,
            running(Auto(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            await until(lambda: backend.kind == "ollama")
            await server.refuse()
            with pytest.raises(BackendDown, match="ollama serve"):
                await steps_of(backend)
            assert backend.kind == "ollama"


async def test_where_one_was_ever_seen_there_is_never_an_echo(tmp_path: Path) -> None:
    remember_one(tmp_path)
    with anyio.fail_after(5):
        async with OllamaLookalike() as server:
            await server.refuse()
            assert Auto(config_for(server.url, tmp_path)).kind == "ollama"
            async with running(Auto(config_for(server.url, tmp_path), QUICK)) as backend:
                assert backend.kind == "ollama"
                with pytest.raises(BackendDown):
                    await steps_of(backend)


async def test_what_another_specialist_found_holds_for_all(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with OllamaLookalike() as server:
            await server.refuse()
            async with running(Auto(config_for(server.url, tmp_path), QUICK)) as backend:
                assert backend.kind == "builtin"
                remember_one(tmp_path)
                await until(lambda: backend.kind == "ollama")


async def test_an_answer_that_has_begun_ends_as_the_echo(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with OllamaLookalike() as server:
            await server.refuse()
            async with running(Auto(config_for(server.url, tmp_path, pace=9999.0), QUICK)) as backend:
                answer = backend.generate(question())
                await anext(answer)
                await server.listen()
                await until(lambda: backend.kind == "ollama")
                rest = [step async for step in answer]
    assert len(rest) > 10


async def test_looking_for_a_server_asks_nothing_where_none_listens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(5):
        async with OllamaLookalike() as server:
            await server.refuse()
            async with running(Auto(config_for(server.url, tmp_path), QUICK)) as backend:
                for _ in range(50):
                    await anyio.lowlevel.checkpoint()
                assert backend.kind == "builtin"
        assert server.requests == []
    assert caplog.text == ""


@pytest.mark.parametrize("url", ["", "nonsense", "http://", "http://127.0.0.1:99999", "http://[::1"])
async def test_an_address_that_cannot_be_right_leaves_the_echo(tmp_path: Path, url: str) -> None:
    with anyio.fail_after(5):
        async with running(Auto(config_for(url, tmp_path, pace=9999.0), QUICK)) as backend:
            assert "not a language model" in await text_of(backend)
            assert backend.kind == "builtin"


@pytest.mark.parametrize(
    ("kind", "url_asked_for", "expected"),
    [
        ("auto", False, Auto),
        ("auto", True, Ollama),
        ("ollama", False, Ollama),
        ("builtin", True, Builtin),
        ("openai_compatible", False, OpenAICompatible),
    ],
)
def test_the_configuration_names_the_backend(tmp_path: Path, kind: str, url_asked_for: bool, expected: type) -> None:
    config = config_for("http://127.0.0.1:1", tmp_path, kind=kind, url_asked_for=url_asked_for)
    assert type(open_backend(config)) is expected
