"""OpenAI's own client, as people have it, against the gateway."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import openai
import pytest
from gatewaying import ServedGateway, documented, gateway
from openai import AsyncOpenAI, OpenAI
from scripted import WHOLE, EchoBackend, ScriptedBackend
from serving import until

from daemon.backends import Backend, Finish, Piece
from protocol.errors import (
    BackendDown,
    BadRequest,
    Busy,
    ContextOverflow,
    ModelError,
    ModelMissing,
)
from protocol.messages import Turn
from supervisor.gateway.follow import USUAL, Patience
from supervisor.gateway.frames import COMMENT

HI: list[Any] = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def client(
    folder: Path, settings: dict[str, Any] | None = None, patience: Patience = USUAL, /, **team: Backend
) -> AsyncGenerator[tuple[AsyncOpenAI, ServedGateway]]:
    async with (
        gateway(folder, settings, patience, **team) as served,
        AsyncOpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0) as sdk,
    ):
        with anyio.fail_after(10):
            yield sdk, served


async def test_a_whole_answer(tmp_path: Path) -> None:
    async with client(tmp_path, apollo=ScriptedBackend(Piece(thinking="hm"), "Hel", "lo")) as (sdk, _):
        answer = await sdk.chat.completions.create(model="apollo", messages=HI)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello", "stop")
    assert choice.message.reasoning_content == "hm"  # type: ignore[attr-defined]
    assert (answer.object, answer.model, answer.id[:9]) == ("chat.completion", "apollo", "chatcmpl-")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 2, 9)


async def test_an_answer_in_pieces(tmp_path: Path) -> None:
    async with client(tmp_path, apollo=ScriptedBackend(Piece(thinking="hm"), "Hel", "lo")) as (sdk, _):
        stream = await sdk.chat.completions.create(model="apollo-ci", messages=HI, stream=True)
        chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert [delta.content for delta in deltas if delta.content] == ["Hel", "lo"]
    assert [delta.reasoning_content for delta in deltas if hasattr(delta, "reasoning_content")] == ["hm"]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 4 + ["stop"]
    assert {(chunk.object, chunk.model, chunk.id) for chunk in chunks} == {
        ("chat.completion.chunk", "apollo-ci", chunks[0].id)
    }


async def test_the_first_piece_comes_before_the_second_is_made(tmp_path: Path) -> None:
    more = asyncio.Event()
    async with client(tmp_path, apollo=ScriptedBackend("Hel", more, "lo")) as (sdk, _):
        stream = await sdk.chat.completions.create(model="apollo", messages=HI, stream=True)
        said = []
        async for chunk in stream:
            said.append(chunk.choices[0].delta.content or "")
            if said[-1] == "Hel":
                more.set()
    assert "".join(said) == "Hello"


async def test_usage_where_it_is_asked_for_comes_last_and_alone(tmp_path: Path) -> None:
    async with client(tmp_path, apollo=ScriptedBackend("Hel", "lo")) as (sdk, _):
        stream = await sdk.chat.completions.create(
            model="apollo", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        *chunks, last = [chunk async for chunk in stream]
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 9


async def test_what_was_not_counted_is_not_told(tmp_path: Path) -> None:
    async with client(tmp_path, apollo=ScriptedBackend("x", Finish(done_reason="length"))) as (sdk, _):
        answer = await sdk.chat.completions.create(model="apollo", messages=HI)
        stream = await sdk.chat.completions.create(
            model="apollo", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert answer.usage is None
    assert answer.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "length"


async def test_the_conversation_and_its_options_reach_the_model(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    said: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [{"type": "text", "text": "three"}, {"type": "text", "text": "four"}]},
        {"role": "tool", "content": "5", "tool_call_id": "sum"},
    ]
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
    async with client(tmp_path, apollo=backend) as (sdk, _):
        await sdk.chat.completions.create(
            model="apollo/qwen3:8b",
            messages=said,
            temperature=0.5,
            max_completion_tokens=9,
            seed=4,
            stop=["END"],
            reasoning_effort="xhigh",
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
            logprobs=False,
            user="somebody",
            extra_body={"nobody_knows_this": 1},
        )
    [prompt] = backend.prompts
    assert prompt.system == "You are Apollo.\n\nBe brief.\n\nBe kind."
    assert prompt.turns == [
        Turn("user", "one"),
        Turn("assistant", "two"),
        Turn("user", "three\nfour"),
        Turn("user", "The tool sum returned:\n5"),
    ]
    options = prompt.options
    assert (options.model, options.temperature, options.max_tokens, options.seed) == ("qwen3:8b", 0.5, 9, 4)
    assert (options.stop, options.think, options.format) == (["END"], "max", schema)


async def test_nothing_is_remembered_between_conversations(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    async with client(tmp_path, apollo=backend) as (sdk, _):
        for _ in range(2):
            await sdk.chat.completions.create(model="apollo", messages=HI)
    assert [len(prompt.turns) for prompt in backend.prompts] == [1, 1]


async def test_the_models_are_everybody_the_team_and_auto(tmp_path: Path) -> None:
    async with client(tmp_path, apollo=EchoBackend(), tekton_core=EchoBackend()) as (sdk, _):
        models = [model.id async for model in sdk.models.list()]
        assert models == ["apollo", "tekton_core", "team", "auto"]
        assert (await sdk.models.retrieve("tekton-ai")).id == "tekton_core"
        assert (await sdk.models.retrieve("team")).owned_by == "chorus"
        with pytest.raises(openai.NotFoundError, match="did you mean apollo"):
            await sdk.models.retrieve("apolo")


async def test_auto_is_answered_by_somebody(tmp_path: Path) -> None:
    async with client(tmp_path, apollo=ScriptedBackend("me")) as (sdk, _):
        answer = await sdk.chat.completions.create(model="auto", messages=HI)
    assert (answer.model, answer.choices[0].message.content) == ("auto", "me")


async def test_the_team_is_one_text_of_sections(tmp_path: Path) -> None:
    wait, broken = asyncio.Event(), ScriptedBackend(ModelError("it broke"))
    first = ScriptedBackend("slow ", wait, "one", WHOLE)
    async with client(tmp_path, apollo=first, metis=ScriptedBackend("quick"), numa=broken) as (sdk, served):
        stream = await sdk.chat.completions.create(
            model="team", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        said = []
        async for chunk in stream:
            said += [choice.delta.content or "" for choice in chunk.choices]
            assert chunk.usage is None  # not everybody was counted
            if "slow " in said and not wait.is_set():
                await until(lambda: served.behind["metis"].specialist.in_flight == 0)
                wait.set()
        answer = await sdk.chat.completions.create(model="team", messages=HI)
    sections = "## apollo\n\nslow one\n\n## metis\n\nquick\n\n## Not answered\n\n- numa: it broke\n"
    if "".join(said).startswith("## metis"):  # whoever spoke first
        sections = "## metis\n\nquick\n\n## apollo\n\nslow one\n\n## Not answered\n\n- numa: it broke\n"
    assert "".join(said) == sections
    assert answer.choices[0].message.content is not None
    assert answer.choices[0].message.content.count("## ") == 3


async def test_a_team_of_whom_nobody_answers_has_failed(tmp_path: Path) -> None:
    async with client(tmp_path, apollo=ScriptedBackend(BackendDown("it is not running"))) as (sdk, _):
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="nobody of 1 answered: apollo: it is not running"):
                await sdk.chat.completions.create(model="team", messages=HI, stream=stream)


@pytest.mark.parametrize(
    ("error", "kind", "status", "code"),
    [
        (Busy("later", retry_after=3.0), openai.InternalServerError, 503, "busy"),
        (BackendDown("it is not running"), openai.InternalServerError, 502, "backend_down"),
        (ModelMissing("pull it"), openai.InternalServerError, 502, "model_missing"),
        (ContextOverflow("too long"), openai.BadRequestError, 400, "context_overflow"),
    ],
)
async def test_failures_before_the_first_token_are_the_clients_own_exceptions(
    tmp_path: Path, error: Exception, kind: type[openai.APIStatusError], status: int, code: str
) -> None:
    async with client(tmp_path, apollo=ScriptedBackend(error)) as (sdk, _):
        for stream in (False, True):
            with pytest.raises(kind) as caught:
                await sdk.chat.completions.create(model="apollo", messages=HI, stream=stream)
            assert (caught.value.status_code, caught.value.code, caught.value.param) == (status, code, None)
            assert caught.value.response.headers.get("retry-after") == ("3" if status == 503 else None)


async def test_only_what_may_help_is_tried_again(tmp_path: Path) -> None:
    backend = ScriptedBackend(ModelMissing("pull it"))
    async with client(tmp_path, apollo=backend) as (sdk, _):
        with pytest.raises(openai.InternalServerError):
            await sdk.with_options(max_retries=2).chat.completions.create(model="apollo", messages=HI)
        assert len(backend.prompts) == 1
        backend.script = (Busy("later", retry_after=0.1),)
        with pytest.raises(openai.InternalServerError):
            await sdk.with_options(max_retries=1).chat.completions.create(model="apollo", messages=HI)
    assert len(backend.prompts) == 3


async def test_too_many_are_a_rate_limit(tmp_path: Path) -> None:
    async with client(tmp_path, {"streams": 1}, apollo=ScriptedBackend("Hel", asyncio.Event())) as (sdk, _):
        first = await sdk.chat.completions.create(model="apollo", messages=HI, stream=True)
        await anext(aiter(first))
        with pytest.raises(openai.RateLimitError) as caught:
            await sdk.chat.completions.create(model="apollo", messages=HI)
        await first.close()
    assert caught.value.response.headers["retry-after"] == "1"
    assert caught.value.type == "rate_limit_error"


async def test_a_wrong_key_is_an_authentication_error(tmp_path: Path) -> None:
    async with client(tmp_path, apollo=EchoBackend()) as (sdk, served):
        _, key = served.key()
        with pytest.raises(openai.AuthenticationError) as caught:
            await sdk.models.list()
        assert caught.value.type == "authentication_error"
        assert (await sdk.with_options(api_key=key).models.list()).data[0].id == "apollo"


async def test_over_the_rate_it_is_a_rate_limit(tmp_path: Path) -> None:
    async with client(tmp_path, {"requests_per_minute": 1}, apollo=EchoBackend()) as (sdk, _):

        async def often() -> None:
            for _ in range(100):
                await sdk.models.list()

        with pytest.raises(openai.RateLimitError) as caught:
            await often()
    assert int(caught.value.response.headers["retry-after"]) > 0


async def test_a_failure_in_the_middle_of_a_stream_is_an_exception_behind_what_had_arrived(tmp_path: Path) -> None:
    async with client(tmp_path, apollo=ScriptedBackend("Hel", ModelError("it broke"))) as (sdk, _):
        stream = await sdk.chat.completions.create(model="apollo", messages=HI, stream=True)
        said = [(await anext(stream)).choices[0].delta.content for _ in range(2)]
        with pytest.raises(openai.APIError, match="it broke") as caught:
            await anext(stream)
    assert said == ["", "Hel"]
    assert caught.value.code == "model_error"


async def test_a_failure_in_the_middle_of_a_whole_answer_has_what_had_arrived(tmp_path: Path) -> None:
    async with client(tmp_path, apollo=ScriptedBackend("Hel", ModelError("it broke"))) as (sdk, _):
        with pytest.raises(openai.InternalServerError) as caught:
            await sdk.chat.completions.create(model="apollo", messages=HI)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["partial"] == "Hel"


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [*HI, {"role": "assistant", "content": "a"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "nobody", "content": "a"}]}, "messages[0].role"),
        ({"n": 2}, "n"),
        ({"temperature": 20}, "temperature"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    ],
)
async def test_a_wrong_parameter_is_a_bad_request_that_names_it(
    tmp_path: Path, wrong: dict[str, Any], param: str
) -> None:
    async with client(tmp_path, apollo=EchoBackend()) as (sdk, _):
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.chat.completions.create(**({"model": "apollo", "messages": HI} | wrong))
    assert (caught.value.param, caught.value.code) == (param, "bad_request")
    assert caught.value.type == "invalid_request_error"


async def test_what_the_model_refuses_is_told_in_this_protocols_terms(tmp_path: Path) -> None:
    refusing = ScriptedBackend(BadRequest("options.think: tiny cannot think; leave it out"))
    async with client(tmp_path, apollo=refusing) as (sdk, _):
        with pytest.raises(openai.BadRequestError, match="reasoning_effort: tiny cannot think") as caught:
            await sdk.chat.completions.create(model="apollo", messages=HI, reasoning_effort="high")
    assert caught.value.param == "reasoning_effort"


async def test_a_model_that_nobody_is_is_not_found(tmp_path: Path) -> None:
    async with client(tmp_path, apollo=EchoBackend()) as (sdk, _):
        with pytest.raises(openai.NotFoundError, match="GET /v1/models") as caught:
            await sdk.chat.completions.create(model="gpt-4o", messages=HI)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.NotFoundError, match="nothing here"):
            await sdk.responses.create(model="apollo", input="hi")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_the_answer(tmp_path: Path, stream: bool) -> None:
    backend = ScriptedBackend("Hel", asyncio.Event())
    async with client(tmp_path, apollo=backend) as (sdk, _):
        with anyio.move_on_after(0.3):
            answer: Any = await sdk.chat.completions.create(model="apollo", messages=HI, stream=stream)
            async with answer:
                async for _ in answer:
                    pass
        await until(lambda: backend.cut_short == 1)


async def test_vectors_are_the_same_as_numbers_and_as_bytes(tmp_path: Path) -> None:
    async with client(tmp_path, apollo=EchoBackend()) as (sdk, _):
        usual = await sdk.embeddings.create(model="apollo", input=["a", "bcd"])
        numbers = await sdk.embeddings.create(model="apollo/nomic", input="a", encoding_format="float")
        with pytest.raises(openai.BadRequestError, match=r"input\[0\]: expected str"):
            await sdk.embeddings.create(model="apollo", input=[[1, 2]])
        for wrong, said in (
            ({"dimensions": 3}, "dimensions: "),
            ({"input": [""]}, "input: empty"),
            ({"input": []}, "input: "),
        ):
            with pytest.raises(openai.BadRequestError, match=said):
                await sdk.embeddings.create(**({"model": "apollo", "input": "a"} | wrong))
        with pytest.raises(openai.BadRequestError, match="a team makes no vectors"):
            await sdk.embeddings.create(model="team", input="a")
    assert [one.embedding for one in usual.data] == [[1.0, 1.0], [3.0, 1.0]]
    assert [one.index for one in usual.data] == [0, 1]
    assert numbers.data[0].embedding == [1.0, 1.0]
    assert (usual.model, numbers.model) == ("scripted:1b", "nomic")


async def test_the_client_that_is_not_async(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("Hel", "lo")) as served:

        def ask() -> tuple[str | None, str]:
            with OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0) as sdk:
                whole = sdk.chat.completions.create(model="apollo", messages=HI)
                stream = sdk.chat.completions.create(model="apollo", messages=HI, stream=True)
                return whole.choices[0].message.content, "".join(c.choices[0].delta.content or "" for c in stream)

        with anyio.fail_after(10):
            assert await anyio.to_thread.run_sync(ask) == ("Hello", "Hello")


async def test_what_is_documented_of_it_works(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("Hel", "lo")) as served:
        program = [sys.executable, "-c", documented("python", served.url)]
        with anyio.fail_after(60):
            done = await anyio.run_process(program, env={"HOME": str(tmp_path)}, stdin=subprocess.DEVNULL)
    assert done.stdout == b"Hello"


async def test_a_retry_with_its_key_joins_the_first_one(tmp_path: Path) -> None:
    backend = ScriptedBackend("Hello")
    async with client(tmp_path, apollo=backend) as (sdk, _):
        for _ in range(2):
            answer = await sdk.chat.completions.create(
                model="apollo", messages=HI, extra_headers={"Idempotency-Key": "k"}
            )
    assert answer.choices[0].message.content == "Hello"
    assert len(backend.prompts) == 1


async def test_a_silence_is_no_event(tmp_path: Path) -> None:
    wait, quick = asyncio.Event(), Patience(look_every=0.01, status=0.02, comment=0.02)
    async with client(tmp_path, {}, quick, apollo=ScriptedBackend("Hel", wait, "lo")) as (sdk, served):
        stream = await sdk.chat.completions.create(model="apollo", messages=HI, stream=True)
        said = [await anext(stream)]
        [connection] = served.house.beat._connections
        came = connection.bytes
        await until(lambda: connection.bytes > came + 3 * len(COMMENT))
        wait.set()
        said += [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in said if chunk.choices) == "Hello"


async def test_a_gateway_that_goes_down_says_so_in_the_stream(tmp_path: Path) -> None:
    async with client(tmp_path, apollo=ScriptedBackend("Hel", asyncio.Event())) as (sdk, served):
        stream = await sdk.chat.completions.create(model="apollo", messages=HI, stream=True)
        await anext(stream)
        await served.house.drain(0.0)
        with pytest.raises(openai.APIError, match="went down") as caught:
            async for _ in stream:
                pass
    assert caught.value.code == "gateway_restarted"
