"""Loading a model before it is asked, and what people are told while they wait."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest
from lookalikes.asking import QUICK, TALKATIVE, config_for, content, question, running, steps_of, text_of, until
from lookalikes.ollama import OllamaLookalike, Refusal, Script

from daemon.backends import Step, Waiting
from daemon.backends.ollama import Ollama
from daemon.backends.rhythm import Rhythm
from protocol.errors import Busy, ModelError, ProtocolError

WARM = ["/api/tags", "/api/ps", "/api/show"]


async def collect(backend: Ollama, into: list[Step], model: str | None = None) -> None:
    async for step in backend.generate(question(model=model)):
        into.append(step)  # noqa: PERF401 looked at while it grows


def paths(server: OllamaLookalike) -> list[str]:
    return [request.path for request in server.requests]


def phases(steps: list[Step]) -> list[Waiting]:
    return [step for step in steps if isinstance(step, Waiting)]


# -- warm-up ----------------------------------------------------------------------------------------------------------


async def test_a_cold_model_is_loaded_by_an_empty_chat_first(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with OllamaLookalike() as server:
            config = config_for(server.url, tmp_path, profile={"num_ctx": 512}, options={"top_k": 1})
            async with running(Ollama(config, QUICK)) as backend:
                await steps_of(backend)
            chats = [request.body for request in server.requests if request.path == "/api/chat"]
    assert chats[0]["messages"] == []
    assert chats[0]["options"] == {"num_ctx": 512}
    assert chats[1]["options"]["num_ctx"] == 512


async def test_a_warm_model_costs_no_extra_round_trip(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with OllamaLookalike() as server:
            server.loaded.add("tiny:latest")
            async with running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend:
                await steps_of(backend)
                known = len(server.requests)
                await steps_of(backend)
                assert paths(server)[:known] == [*WARM, "/api/chat"]
                assert paths(server)[known:] == ["/api/chat"]


async def test_a_recent_answer_counts_as_loaded(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike() as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            await steps_of(backend)
            await steps_of(backend)
            assert server.loads_begun == 1
            assert len([one for one in server.requests if one.path == "/api/chat"]) == 3


async def test_all_who_wait_share_one_load_and_are_told_of_it(tmp_path: Path) -> None:
    answers: list[list[Step]] = [[], [], []]
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(Script(slow_load=True)) as server,
            running(Ollama(config_for(server.url, tmp_path), TALKATIVE)) as backend,
            anyio.create_task_group() as tasks,
        ):
            for answer in answers:
                tasks.start_soon(collect, backend, answer)
            await until(lambda: all(Waiting("loading") in answer for answer in answers))
            assert backend.state.state == "loading"
            server.let_load()
    assert server.loads_begun == 1
    assert [content(answer) for answer in answers] == ["Hello, world"] * 3


async def test_a_user_who_leaves_does_not_end_the_load(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(Script(slow_load=True)) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(steps_of, backend)
                await until(lambda: server.loads_begun)
                tasks.cancel_scope.cancel()
            await backend.embed(["a"], None)  # a round trip: by now the server would know of a disconnect
            server.let_load()
            await until(lambda: server.loaded)
            assert server.loads_aborted == 0
            assert await text_of(backend) == "Hello, world"
            assert server.loads_begun == 1


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [(Refusal(503, "server busy"), Busy), (Refusal(500, "model requires more system memory"), ModelError)],
)
async def test_everybody_who_waits_for_a_load_that_fails_is_told(
    tmp_path: Path, refusal: Refusal, expected: type[ProtocolError]
) -> None:
    errors: list[ProtocolError] = []

    async def ask(backend: Ollama) -> None:
        try:
            await steps_of(backend)
        except ProtocolError as error:
            errors.append(error)

    with anyio.fail_after(5):
        async with (
            OllamaLookalike(Script(load_refusal=refusal)) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(ask, backend)
            tasks.start_soon(ask, backend)
    assert [type(error) for error in errors] == [expected, expected]
    assert errors[0] is not errors[1]
    assert refusal.text in errors[0].sentence


async def test_a_server_that_knows_no_empty_chat_is_asked_all_the_same(tmp_path: Path) -> None:
    script = Script(load_refusal=Refusal(400, "messages must not be empty"))
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(script) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            assert await text_of(backend) == "Hello, world"


async def test_an_impossible_request_loads_nothing(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike() as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            with pytest.raises(ProtocolError, match="cannot think"):
                await steps_of(backend, question(think=True))
            assert "/api/chat" not in paths(server)


# -- waiting ----------------------------------------------------------------------------------------------------------


async def test_a_loaded_model_that_says_nothing_yet_is_in_prefill(tmp_path: Path) -> None:
    steps: list[Step] = []
    with anyio.fail_after(5):
        async with OllamaLookalike(Script(hold=True)) as server:
            server.loaded.add("tiny:latest")
            async with (
                running(Ollama(config_for(server.url, tmp_path), TALKATIVE)) as backend,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(collect, backend, steps)
                await until(lambda: steps)
                with anyio.move_on_after(5 * TALKATIVE.quiet):
                    await anyio.Event().wait()
                server.let_go()
    assert phases(steps) == [Waiting("prefill")]
    assert content(steps) == "Hello, world"


async def test_the_word_comes_as_soon_as_the_look_for_it_is_over(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with OllamaLookalike(Script(hold=True)) as server:
            server.loaded.add("tiny:latest")
            async with running(Ollama(config_for(server.url, tmp_path), Rhythm(quiet=1.0, look_again=0.01))) as backend:
                await backend.look()
                answer = backend.generate(question())
                began = anyio.current_time()
                assert await anext(answer) == Waiting("prefill")
                assert 0.99 < anyio.current_time() - began < 1.9
                assert isinstance(answer, AsyncGenerator)
                await answer.aclose()


async def test_a_model_that_went_away_meanwhile_is_loading(tmp_path: Path) -> None:
    steps: list[Step] = []
    with anyio.fail_after(5):
        async with OllamaLookalike() as server:
            server.loaded.add("tiny:latest")
            async with running(Ollama(config_for(server.url, tmp_path), TALKATIVE)) as backend:
                await steps_of(backend)
                server.script = Script(slow_load=True)
                server.loaded.clear()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(collect, backend, steps)
                    await until(lambda: steps)
                    assert steps == [Waiting("loading")]
                    server.loaded.add("tiny:latest")
                    await until(lambda: len(steps) == 2)
                    server.let_load()
    assert phases(steps) == [Waiting("loading"), Waiting("prefill")]


async def test_later_questions_are_queued_and_move_up(tmp_path: Path) -> None:
    answers: list[list[Step]] = [[], [], []]
    with anyio.fail_after(5):
        async with OllamaLookalike(Script(hold=True)) as server:
            server.loaded.add("tiny:latest")
            async with (
                running(Ollama(config_for(server.url, tmp_path), TALKATIVE)) as backend,
                anyio.create_task_group() as tasks,
            ):
                for number, answer in enumerate(answers, start=1):
                    tasks.start_soon(collect, backend, answer)
                    await until(lambda number=number: len(server.asked()) == number)  # type: ignore[misc]
                await until(lambda: all(answers))
                server.let_go()
    assert phases(answers[0]) == [Waiting("prefill")]
    assert phases(answers[1])[0] == Waiting("queued", 1)
    assert phases(answers[2])[0] == Waiting("queued", 2)


async def test_who_does_not_wait_is_told_nothing(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with OllamaLookalike() as server, running(Ollama(config_for(server.url, tmp_path))) as backend:
            assert phases(await steps_of(backend)) == []
