"""What a backend knows of its Ollama: whether it can answer, and with which model."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest
from lookalikes.asking import FOLLOWING, QUICK, config_for, question, running, steps_of, text_of, until
from lookalikes.ollama import Model, OllamaLookalike, Refusal, Script

from daemon.backends.ollama import Ollama
from daemon.backends.rhythm import Rhythm
from protocol.errors import BackendDown, ModelMissing

# -- state ------------------------------------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_is_down_and_says_how_to_start_it(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with OllamaLookalike() as server:
            await server.refuse()
            async with running(Ollama(config_for(server.url, tmp_path, model="tiny"), FOLLOWING)) as backend:
                with pytest.raises(BackendDown, match="start it with `ollama serve`"):
                    await steps_of(backend)
                assert backend.state.state == "down"
                assert "`ollama serve`" in (backend.state.error or "")
                await server.listen()
                await until(lambda: backend.state.state == "ready")
                assert backend.state.error is None


async def test_a_server_that_goes_away_is_noticed_by_the_next_question(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with OllamaLookalike() as server, running(Ollama(config_for(server.url, tmp_path))) as backend:
            await steps_of(backend)
            await server.refuse()
            with pytest.raises(BackendDown):
                await steps_of(backend)
            assert backend.state.state == "down"


async def test_without_any_model_it_says_which_to_pull(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(models={}) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            with pytest.raises(ModelMissing, match=r"ollama pull llama3\.2"):
                await steps_of(backend)
            assert backend.state.state == "model_missing"
            server.models["new:latest"] = Model()
            await until(lambda: backend.state.state == "ready")
            assert await text_of(backend) == "Hello, world"
            assert backend.model == "new:latest"


async def test_a_named_model_that_is_missing_is_named(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike() as server,
            running(Ollama(config_for(server.url, tmp_path, model="qwen3"), QUICK)) as backend,
        ):
            await backend.look()
            assert backend.state.state == "model_missing"
            with pytest.raises(ModelMissing, match="`ollama pull qwen3`"):
                await steps_of(backend)
            assert "`ollama pull qwen3`" in (backend.state.error or "")
            server.models["qwen3:latest"] = Model()
            assert await text_of(backend) == "Hello, world"
            await until(lambda: backend.state.error is None)


@pytest.mark.parametrize(
    "script",
    [
        Script(look_refusal=Refusal(500, "boom")),
        Script(look_refusal=Refusal(401)),
        Script(look_refusal=Refusal(302, headers={"Location": "/"})),
        Script(look_garbage=b""),
        Script(look_garbage=b"SSH-2.0-OpenSSH_9.2\r\n"),
        Script(look_garbage=b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html"),
        Script(look_garbage=b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"models":3}'),
        Script(look_garbage=b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nshort"),
        Script(look_garbage=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n"),
        Script(look_garbage=b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\xff\xfe\x00"),
        Script(look_garbage=b"HTTP/1.1 999999 \xff\r\n\r\n"),
    ],
)
async def test_no_misbehaviour_of_the_server_ends_the_watch(tmp_path: Path, script: Script) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(script) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            await until(lambda: backend.state.state == "down")
            assert backend.state.error
            with pytest.raises(BackendDown):
                await steps_of(backend, question(model=None))
            server.script = Script()
            await until(lambda: backend.state.state == "ready")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://no such host", "http://[::1", "ftp://x", "nonsense", ""])
async def test_an_address_that_cannot_be_right_is_down_with_a_sentence(tmp_path: Path, url: str) -> None:
    with anyio.fail_after(5):
        async with running(Ollama(config_for(url, tmp_path), QUICK)) as backend:
            await until(lambda: backend.state.state == "down")
            assert "backend.url" in (backend.state.error or "")
            with pytest.raises(BackendDown):
                await steps_of(backend)


async def test_a_server_that_accepts_and_says_nothing_is_down(tmp_path: Path) -> None:
    async def silent(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await anyio.sleep_forever()

    with anyio.fail_after(5):
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        rhythm = Rhythm(look_limit=0.05)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, silent)
            async with running(Ollama(config_for(f"http://127.0.0.1:{port}", tmp_path), rhythm)) as backend:
                await until(lambda: backend.state.state == "down")
                assert "does not answer within 0.05 s" in (backend.state.error or "")
            tasks.cancel_scope.cancel()
        await listener.aclose()


async def test_the_context_is_the_one_the_model_was_loaded_with(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with OllamaLookalike(models={"tiny:latest": Model(context_length=2048)}) as server:
            config = config_for(server.url, tmp_path, profile={"num_ctx": 8192})
            async with running(Ollama(config, QUICK)) as backend:
                assert backend.context_length == 8192
                await steps_of(backend)
                await until(lambda: backend.context_length == 2048)


# -- the default model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tags_show_capabilities", [True, False])
async def test_the_first_model_by_name_that_can_answer_is_chosen(tmp_path: Path, tags_show_capabilities: bool) -> None:
    models = {
        "zeta:latest": Model(),
        "tiny-think:latest": Model(),
        "tiny:latest": Model(),
        "all-minilm:latest": Model(("embedding",)),
    }
    script = Script(tags_show_capabilities=tags_show_capabilities)
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(script, models=models) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            await backend.look()
            assert backend.model == "tiny:latest"
            remembered = json.loads((tmp_path / "backend.json").read_bytes())
            assert remembered == {"url": server.url, "model": "tiny:latest", "seen": True}


async def test_the_choice_is_kept_while_the_model_exists(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with OllamaLookalike(models={"m:latest": Model()}) as server:
            async with running(Ollama(config_for(server.url, tmp_path), QUICK)) as first:
                await first.look()
            server.models["a:latest"] = Model()
            async with running(Ollama(config_for(server.url, tmp_path), QUICK)) as second:
                await second.look()
                assert second.model == "m:latest"
            del server.models["m:latest"]
            async with running(Ollama(config_for(server.url, tmp_path), QUICK)) as third:
                await third.look()
                assert third.model == "a:latest"


async def test_another_server_is_another_choice(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        models = {"a:latest": Model(), "b:latest": Model()}
        (tmp_path / "backend.json").write_text('{"url":"http://elsewhere:1","model":"b:latest","seen":true}')
        async with (
            OllamaLookalike(models=models) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            await backend.look()
            assert backend.model == "a:latest"


async def test_the_choice_is_said_aloud_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with anyio.fail_after(5):
        async with OllamaLookalike() as server:
            for _ in range(2):
                async with running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend:
                    await backend.look()
    assert caplog.text.count("answers come from tiny:latest") == 1
