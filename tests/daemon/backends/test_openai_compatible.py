"""Answers from servers with OpenAI's protocol, over a real socket."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import pytest
from lookalikes.asking import (
    FOLLOWING,
    HASTY,
    QUICK,
    TALKATIVE,
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
from lookalikes.openai import OpenAILookalike, Script

from daemon.backends import Finish, Step, Waiting
from daemon.backends.openai_compatible import OpenAICompatible, with_version
from daemon.backends.openai_wire import OpenAIReading, completion_body
from daemon.backends.rhythm import Rhythm
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


@pytest.mark.parametrize(
    "script",
    [
        Script(),
        Script(data="data:"),
        Script(line_end="\r\n"),
        Script(comments=True),
        Script(cut=1),
        Script(finish_on_last_token=True),
        Script(role_first=False),
        Script(ending="eof"),
        Script(ending="error"),  # after the finish reason it is about something else
        Script(ending="reset"),
        Script(ending="stall"),
    ],
)
async def test_every_flavour_of_a_good_answer_is_one(tmp_path: Path, script: Script) -> None:
    with anyio.fail_after(5):
        async with (
            OpenAILookalike(script) as server,
            running(OpenAICompatible(config_for(server.url, tmp_path), HASTY)) as backend,
        ):
            steps = await steps_of(backend)
    assert content(steps) == "Hello, world"
    assert finish(steps) == Finish(done_reason="stop", prompt_tokens=12, completion_tokens=3)


async def test_figures_are_taken_where_there_are_any(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OpenAILookalike(Script(usage=False)) as server,
            running(OpenAICompatible(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            assert finish(await steps_of(backend)) == Finish(done_reason="stop")
            server.script = Script(timings=True)
            end = finish(await steps_of(backend))
    assert (end.tokens_per_second, end.prompt_tokens_per_second, end.prompt_ms) == (42.0, 210.0, 57.0)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_both_names_of_reasoning_are_thinking(tmp_path: Path, field: Any) -> None:
    with anyio.fail_after(5):
        async with (
            OpenAILookalike(Script(thinking=("hm", " so"), reasoning=field)) as server,
            running(OpenAICompatible(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            steps = await steps_of(backend)
    assert (thinking(steps), content(steps)) == ("hm so", "Hello, world")


async def test_an_inline_think_tag_is_taken_out(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OpenAILookalike(Script(tokens=("<thi", "nk>hm</think>", "Yes"))) as server,
            running(OpenAICompatible(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            steps = await steps_of(backend)
    assert (thinking(steps), content(steps)) == ("hm", "Yes")


@pytest.mark.parametrize(("reason", "expected"), [("stop", "stop"), ("length", "length"), ("tool_calls", "stop")])
async def test_finish_reasons_are_mapped(tmp_path: Path, reason: str, expected: str) -> None:
    with anyio.fail_after(5):
        async with (
            OpenAILookalike(Script(finish_reason=reason)) as server,
            running(OpenAICompatible(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            assert finish(await steps_of(backend)).done_reason == expected


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "expected", "says"),
    [
        (Script(finish_reason=None), Truncated, "without saying"),
        (Script(finish_reason=None, ending="eof"), Truncated, "without saying"),
        (Script(finish_reason=None, ending="error"), ModelError, "boom"),
        (Script(finish_reason=None, ending="error_text"), ModelError, "boom"),
        (Script(finish_reason=None, ending="error_line"), ModelError, "boom"),
        (Script(finish_reason=None, ending="reset"), ModelError, "broke"),
        (Script(finish_reason=None, ending="stall"), Stalled, "limits.silence"),
        (Script(finish_reason="content_filter"), ModelError, "content_filter"),
        (Script(whole_error=b'{"error":{"message":"boom"}}'), ModelError, "boom"),
        (Script(whole_error=b"<html></html>"), Truncated, "without saying"),
        (Script(whole_error=b"data: {nonsense}\n\n"), ModelError, "cannot be read"),
        (Script(tokens=()), EmptyAnswer, "without a single character"),
        (Script(tokens=(), thinking=("hm",), finish_reason="length"), EmptyAnswer, "raise max_tokens"),
        (Script(status=503, refusal=b'{"error":{"message":"Loading model"}}'), Busy, "Loading model"),
        (Script(status=429, headers={"Retry-After": "1"}), Busy, "1 s"),
        (
            Script(status=400, refusal=b'{"error":{"message":"exceeds the available context size"}}'),
            ContextOverflow,
            "context",
        ),
        (Script(status=400, refusal=b'{"error":"bad temperature"}'), BadRequest, "bad temperature"),
        (
            Script(status=404, refusal=b'{"error":{"message":"The model `x` does not exist."}}'),
            ModelMissing,
            "backend.model",
        ),
        (Script(status=500, refusal=b'{"error":{"message":"oom"}}'), ModelError, "oom"),
    ],
)
async def test_every_flavour_of_failure_is_named(
    tmp_path: Path, script: Script, expected: type[ProtocolError], says: str
) -> None:
    with anyio.fail_after(5):
        async with (
            OpenAILookalike(script) as server,
            running(OpenAICompatible(config_for(server.url, tmp_path, silence=0.1), QUICK)) as backend,
        ):
            with pytest.raises(ProtocolError) as caught:
                await steps_of(backend)
    assert type(caught.value) is expected
    assert says in caught.value.sentence


async def test_closing_the_answer_ends_it_at_the_server(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OpenAILookalike(Script(finish_reason=None, ending="stall")) as server,
            running(OpenAICompatible(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            answer = backend.generate(question())
            assert isinstance(answer, AsyncGenerator)
            await anext(answer)
            await answer.aclose()
            await server.asked()[-1].gone.wait()


async def test_who_waits_is_told_of_the_queue_or_of_the_prompt(tmp_path: Path) -> None:
    answers: list[list[Step]] = [[], []]

    async def collect(into: list[Step]) -> None:
        async for step in backend.generate(question()):
            into.append(step)  # noqa: PERF401 looked at while it grows

    with anyio.fail_after(5):
        async with (
            OpenAILookalike(Script(hold=True)) as server,
            running(OpenAICompatible(config_for(server.url, tmp_path), TALKATIVE)) as backend,
            anyio.create_task_group() as tasks,
        ):
            for number, answer in enumerate(answers, start=1):
                tasks.start_soon(collect, answer)
                await until(lambda number=number: len(server.asked()) == number)  # type: ignore[misc]
            await until(lambda: all(answers))
            server.let_go()
    assert answers[0][0] == Waiting("prefill")
    assert answers[1][0] == Waiting("queued", 1)


# -- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_the_address_may_end_in_v1_or_not(tmp_path: Path, suffix: str) -> None:
    assert with_version("http://x" + suffix) == "http://x/v1"
    with anyio.fail_after(5):
        async with (
            OpenAILookalike() as server,
            running(OpenAICompatible(config_for(server.url + suffix, tmp_path), QUICK)) as backend,
        ):
            assert await text_of(backend) == "Hello, world"


async def test_the_key_is_sent_and_a_wrong_one_is_explained(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with OpenAILookalike(key="s3cret") as server:
            async with running(OpenAICompatible(config_for(server.url, tmp_path, api_key="s3cret"), QUICK)) as backend:
                assert await text_of(backend) == "Hello, world"
            async with running(OpenAICompatible(config_for(server.url, tmp_path, model="tiny"), QUICK)) as backend:
                with pytest.raises(BackendDown, match=r"Invalid API Key.*api_key_file"):
                    await steps_of(backend)
                await until(lambda: backend.state.state == "down")


async def test_a_server_that_comes_and_goes_is_followed(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OpenAILookalike() as server,
            running(OpenAICompatible(config_for(server.url, tmp_path), FOLLOWING)) as backend,
        ):
            await until(lambda: backend.state.state == "ready")
            await server.refuse()
            with pytest.raises(BackendDown, match="start the model server there"):
                await steps_of(backend)
            assert backend.state.state == "down"
            await server.listen()
            await until(lambda: backend.state.state == "ready")


async def test_the_first_listed_model_is_chosen(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OpenAILookalike(models=("zeta", "alpha-embed", "beta")) as server,
            running(OpenAICompatible(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            await steps_of(backend)
            assert backend.model == "beta"
            assert server.asked()[-1].body["model"] == "beta"


async def test_a_model_that_is_not_listed_is_missing_until_it_answers(tmp_path: Path) -> None:
    def looks() -> int:
        return sum(one.path == "/v1/models" for one in server.requests)

    with anyio.fail_after(5):
        async with (
            OpenAILookalike() as server,
            running(
                OpenAICompatible(config_for(server.url, tmp_path, model="other"), Rhythm(look=0.01, look_again=0.0))
            ) as backend,
        ):
            await until(lambda: backend.state.state == "model_missing")
            assert "it has tiny" in (backend.state.error or "")
            assert await text_of(backend) == "Hello, world"
            seen = looks()
            await until(lambda: looks() >= seen + 3)
            assert backend.state.error is None


@pytest.mark.parametrize(
    "script", [Script(models_status=500), Script(models_body=b"nonsense"), Script(models_status=404)]
)
async def test_a_list_that_cannot_be_had_is_down(tmp_path: Path, script: Script) -> None:
    with anyio.fail_after(5):
        async with (
            OpenAILookalike(script) as server,
            running(OpenAICompatible(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            await until(lambda: backend.state.state == "down")
            with pytest.raises(BackendDown):
                await steps_of(backend)


async def test_a_server_without_a_list_is_asked_for_the_named_model(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OpenAILookalike(Script(models_status=404)) as server,
            running(OpenAICompatible(config_for(server.url, tmp_path, model="m"), QUICK)) as backend,
        ):
            await until(lambda: backend.state.state == "ready")
            assert await text_of(backend) == "Hello, world"


async def test_vectors_come_in_the_order_of_the_texts(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with (
            OpenAILookalike() as server,
            running(OpenAICompatible(config_for(server.url, tmp_path), QUICK)) as backend,
        ):
            assert await backend.embed(["a", "bcd"], "m") == ([[1.0], [3.0]], "m")


# -- what is sent -----------------------------------------------------------------------------------------------------


def sent(changes: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return completion_body("m", question(**options), config_for("", Path(), **(changes or {})))


def test_the_body_is_the_common_subset() -> None:
    body = sent({"profile": {"num_ctx": 8192, "top_p": 0.5}}, temperature=0.2, seed=1, stop="END", max_tokens=9)
    assert body.pop("messages")[0].content == "You are Apollo."
    assert body == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
        "temperature": 0.2,
        "seed": 1,
        "stop": "END",
        "top_p": 0.5,
    }


def test_the_answer_is_always_limited() -> None:
    assert sent({"answer_tokens": 7})["max_tokens"] == 7


def test_reasoning_is_only_spoken_of_when_asked() -> None:
    assert "reasoning_effort" not in sent()
    assert sent(think=False)["reasoning_effort"] == "none"
    assert sent(think="max")["reasoning_effort"] == "high"


def test_formats_are_put_in_openais_words() -> None:
    assert sent(format="json")["response_format"] == {"type": "json_object"}
    schema = {"type": "object"}
    assert sent(format=schema)["response_format"]["json_schema"]["schema"] == schema


def test_an_error_stands_before_choices() -> None:
    reading = OpenAIReading("u")
    reading.take([b'data: {"error":{"message":"boom"},"choices":[{"delta":{"content":"x"}}]}'])
    with pytest.raises(ModelError, match="boom"):
        reading.finish()
