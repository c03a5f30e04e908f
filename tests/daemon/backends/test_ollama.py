"""Answers from Ollama, over a real socket."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest
from lookalikes.asking import (
    HASTY,
    QUICK,
    config_for,
    content,
    finish,
    question,
    running,
    steps_of,
    text_of,
    thinking,
    until,
)
from lookalikes.ollama import Model, OllamaLookalike, Script

from daemon.backends import Finish, Piece
from daemon.backends.ollama import Ollama
from protocol.errors import (
    BadRequest,
    Draining,
    ModelError,
    ModelMissing,
    ProtocolError,
)

THINKER = {"tiny:latest": Model(("completion", "thinking"))}


async def test_tokens_arrive_in_order_and_end_with_the_figures(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike() as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            steps = await steps_of(backend)
    assert content(steps) == "Hello, world"
    assert finish(steps) == Finish(
        done_reason="stop",
        prompt_tokens=26,
        completion_tokens=3,
        tokens_per_second=3.0,
        prompt_tokens_per_second=52.0,
        load_ms=2.0,
        prompt_ms=500.0,
    )


async def test_text_in_the_last_line_and_the_reason_length_are_kept(tmp_path: Path) -> None:
    script = Script(last_token_in_done=True, done_reason="length")
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(script) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            steps = await steps_of(backend)
    assert content(steps) == "Hello, world!"
    assert finish(steps).done_reason == "length"


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 64])
async def test_lines_cut_anywhere_also_inside_a_character_are_put_together(tmp_path: Path, cut: int) -> None:
    script = Script(tokens=("Zür", "ich ", "🎵", "\u2028", "\x85"), cut=cut)
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(script) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            assert await text_of(backend) == "Zürich 🎵\u2028\x85"


async def test_a_token_of_300_kilobytes_is_no_trouble(tmp_path: Path) -> None:
    script = Script(tokens=("a", "x" * 300_000, "b"))
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(script) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            assert len(await text_of(backend)) == 300_002


async def test_a_line_without_end_is_given_up_at_the_limit(tmp_path: Path) -> None:
    script = Script(tokens=("a", "x" * 9_000_000))
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(script) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            with pytest.raises(ModelError, match="line"):
                await steps_of(backend)


async def test_many_lines_at_once_become_few_pieces(tmp_path: Path) -> None:
    script = Script(tokens=("word ",) * 20_000, burst=1000)
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(script) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            steps = await steps_of(backend)
    assert content(steps) == "word " * 20_000
    assert len(steps) < 2000


async def test_thinking_comes_as_thinking(tmp_path: Path) -> None:
    script = Script(thinking=("Let me ", "see"), tokens=("42",))
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(script, models=THINKER) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            steps = await steps_of(backend, question(think=True))
            assert (thinking(steps), content(steps)) == ("Let me see", "42")
            assert server.asked()[-1].body["think"] is True


async def test_an_inline_think_tag_is_taken_out_of_the_content(tmp_path: Path) -> None:
    script = Script(tokens=("<th", "ink>hm", "</thi", "nk>\n", "\nYes <think>"))
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(script) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            steps = await steps_of(backend)
    assert (thinking(steps), content(steps)) == ("hm", "Yes <think>")


async def test_text_held_back_as_a_possible_tag_is_not_lost(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(Script(tokens=("<th",))) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            assert await text_of(backend) == "<th"


@pytest.mark.parametrize("model", [None, "tiny", "tiny:latest"])
async def test_a_model_without_thinking_is_not_told_to_leave_it(tmp_path: Path, model: str | None) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike() as server,
            running(Ollama(config_for(server.url, tmp_path, model=model), QUICK)) as backend,
        ):
            await steps_of(backend)
            assert "think" not in server.asked()[-1].body
            with pytest.raises(BadRequest, match="cannot think"):
                await steps_of(backend, question(think=True))
            assert len(server.asked()) == 1


async def test_a_thinking_model_is_told_not_to_unless_asked(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(models=THINKER) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            await steps_of(backend)
            assert server.asked()[-1].body["think"] is False


async def test_a_request_may_name_another_model(tmp_path: Path) -> None:
    models = {"tiny:latest": Model(), "other:latest": Model()}
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(models=models) as server,
            running(Ollama(config_for(server.url, tmp_path, model="tiny"), QUICK)) as backend,
        ):
            await steps_of(backend, question(model="other"))
            assert server.asked()[-1].body["model"] == "other"
            with pytest.raises(ModelMissing, match="ollama pull none"):
                await steps_of(backend, question(model="none"))
            assert backend.state.state == "ready"


async def test_the_key_goes_with_every_request(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike() as server,
            running(Ollama(config_for(server.url, tmp_path, api_key="s3cret"), QUICK)) as backend,
        ):
            await steps_of(backend)
            assert {one.headers.get("authorization") for one in server.requests} == {"Bearer s3cret"}


# -- leaving ----------------------------------------------------------------------------------------------------------


async def test_closing_the_answer_ends_it_at_the_server(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(Script(endless=True)) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            answer = backend.generate(question())
            assert isinstance(answer, AsyncGenerator)
            assert isinstance(await anext(answer), Piece)
            await answer.aclose()
            await server.asked()[-1].gone.wait()


async def test_leaving_before_the_first_token_ends_it_at_the_server(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(Script(hold=True)) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(steps_of, backend)
                await until(server.asked)
                tasks.cancel_scope.cancel()
            await server.asked()[-1].gone.wait()
            assert backend.state.state == "ready"


async def test_when_the_backend_ends_every_question_under_way_fails(tmp_path: Path) -> None:
    async def ask(backend: Ollama, errors: list[ProtocolError]) -> None:
        try:
            await steps_of(backend)
        except ProtocolError as error:
            errors.append(error)

    errors: list[ProtocolError] = []
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(Script(ending="stall")) as server,
            anyio.create_task_group() as tasks,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            tasks.start_soon(ask, backend, errors)
            await until(server.asked)
            server.script = Script(hold=True)
            tasks.start_soon(ask, backend, errors)
            await until(lambda: len(server.asked()) == 2)
    assert [type(error) for error in errors] == [Draining, Draining]


async def test_an_endless_answer_costs_no_memory_here(tmp_path: Path) -> None:
    script = Script(tokens=("word ",) * 1000, burst=1000, endless=True)
    with anyio.fail_after(120):
        async with (
            OllamaLookalike(script) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            answer = backend.generate(question())
            assert isinstance(answer, AsyncGenerator)
            await anext(answer)
            tracemalloc.start()
            seen = 0
            while seen < 200_000:
                step = await anext(answer)
                assert isinstance(step, Piece)
                seen += step.content.count(" ")
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            await answer.aclose()
    assert peak < 20_000_000


# -- connections ------------------------------------------------------------------------------------------------------


async def test_one_connection_is_used_again_for_the_next_question(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike() as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            for _ in range(3):
                await steps_of(backend)
                await server.asked()[-1].answered.wait()
            assert len({one.connection for one in server.asked()}) == 1


async def test_an_end_that_comes_after_the_last_line_does_not_cost_the_connection(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(Script(after_done="later")) as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            await steps_of(backend)
            first = server.asked()[-1]
            server.let_go()
            await first.answered.wait()
            server.script = Script()
            known = len(server.requests)
            while not any(one.connection == first.connection for one in server.requests[known:]):
                await steps_of(backend)  # its end may still be on its way to us


async def test_a_kept_connection_that_died_meanwhile_is_no_failure(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike() as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            await steps_of(backend)
            for connection in list(server.connections):
                connection.transport.abort()
            assert await text_of(backend) == "Hello, world"


async def test_a_server_that_keeps_the_answer_open_after_done_does_not_hold_us(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike(Script(after_done="stay")) as server,
            running(Ollama(config_for(server.url, tmp_path), HASTY)) as backend,
        ):
            assert await text_of(backend) == "Hello, world"
            await server.asked()[-1].gone.wait()


async def test_a_request_of_many_megabytes_is_sent_whole(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike() as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            assert await text_of(backend, question("x" * 3_000_000)) == "Hello, world"
            assert len(server.asked()[-1].body["messages"][-1]["content"]) == 3_000_000


async def test_text_that_is_no_unicode_is_the_callers_mistake(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with OllamaLookalike() as server, running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend:
            with pytest.raises(BadRequest, match="Unicode"):
                await steps_of(backend, question("\ud800"))
            assert await text_of(backend) == "Hello, world"


# -- vectors ----------------------------------------------------------------------------------------------------------


async def test_each_text_gets_its_vector(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OllamaLookalike() as server,
            running(Ollama(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            assert await backend.embed(["a", "bcd"], None) == ([[1.0, 1.0], [3.0, 1.0]], "tiny:latest")
            with pytest.raises(ModelMissing, match="ollama pull none"):
                await backend.embed(["a"], "none")
