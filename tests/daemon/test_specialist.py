"""The colleague: what of a request reaches the prompt, what of it comes back, and the budget."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import anyio
import pytest
from scripted import WHOLE, ScriptedBackend
from serving import Json, serving

from protocol.messages import Options


async def asked(folder: Path, backend: ScriptedBackend, *requests: Json, **changes: Any) -> Json:
    """The last of the answers to these."""
    async with serving(backend, folder, **changes) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            return [await client.ask(request) for request in requests][-1]


async def test_the_persona_is_the_fixed_front_and_the_context_is_in_the_users_turn(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    context = {"previous_ai": "athena", "previous_response": "Be wise.", "memory_hints": ["owls"], "session_id": "s"}
    await asked(tmp_path, backend, {"content": "one"}, {"content": "two", "context": context})
    assert [prompt.system for prompt in backend.prompts] == ["You are Apollo."] * 2
    assert backend.questions[1] == "Context: owls\n\nathena answered before you:\n> Be wise.\n\ntwo"


async def test_a_stored_turn_is_shown_again_byte_for_byte(tmp_path: Path) -> None:
    """Or the model server's prompt cache would be of no use."""
    backend = ScriptedBackend("x")
    context = {"session_id": "s", "memory_hints": ["owls"]}
    await asked(tmp_path, backend, {"content": "one", "context": context}, {"content": "two", "context": context})
    assert backend.prompts[1].turns[0].content == backend.questions[0]


@pytest.mark.parametrize(
    ("sent", "back"),
    [
        ({}, {"specialist_id": "apollo-ci"}),
        ({"specialist_id": "Apollo-AI"}, {"specialist_id": "Apollo-AI"}),
        ({"pipeline_position": 0}, {"pipeline_position": 0, "pipeline_stage": 0, "specialist_id": "apollo-ci"}),
        ({"pipeline_stage": 2, "pipeline_position": 1}, {"pipeline_stage": 2, "pipeline_position": 1}),
        ({"mine": {"deep": [1, None]}, "session_id": "s"}, {"mine": {"deep": [1, None]}, "session_id": "s"}),
        ({"previous_specialist": "athena", "previous_response": "long"}, {"previous_specialist": "athena"}),
    ],
)
async def test_the_context_comes_back_with_ours_added(tmp_path: Path, sent: Json, back: Json) -> None:
    reply = await asked(tmp_path, ScriptedBackend("x"), {"content": "a", "context": sent})
    context = reply["context"]
    assert set(context) == set(sent) - {"previous_response"} | set(back) | {"specialist_id", "session_id"}
    assert {key: context[key] for key in back} == back


async def test_the_callers_system_messages_stand_beside_the_persona_and_are_never_cut(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    backend.context_length = 1000
    said = [
        {"role": "system", "content": "Be brief."},
        *({"role": role, "content": "y" * 600} for role in ("user", "assistant") * 4),
        {"role": "system", "content": "Speak French."},
    ]
    reply = await asked(tmp_path, backend, {"content": "now", "history": said})
    [prompt] = backend.prompts
    assert prompt.system == "You are Apollo.\n\nBe brief.\n\nSpeak French."
    assert reply["notices"]
    assert {turn.role for turn in prompt.turns} == {"user", "assistant"}


async def test_a_previous_answer_may_stand_without_a_question(tmp_path: Path) -> None:
    reply = await asked(tmp_path, ScriptedBackend("x"), {"content": "", "context": {"previous_response": "y"}})
    assert reply["content"] == "x"


async def test_options_reach_the_model(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    options = {"model": "m", "temperature": 0.5, "think": "low", "seed": 1, "stop": ["."], "format": {"type": "object"}}
    await asked(tmp_path, backend, {"content": "a", "options": options, "max_tokens": 5, "temperature": 0.9})
    assert backend.prompts[0].options == Options(**options, max_tokens=5)  # type: ignore[arg-type]


async def test_the_models_name_in_an_answer_is_the_one_asked_for(tmp_path: Path) -> None:
    assert (await asked(tmp_path, ScriptedBackend("x"), {"content": "a", "options": {"model": "m"}}))["model"] == "m"


async def test_our_own_model_is_asked_for_where_the_caller_names_none(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    await asked(tmp_path, backend, {"content": "a"}, model="mine")
    assert backend.prompts[0].options.model == "mine"


async def test_over_the_budget_the_oldest_half_goes_with_a_notice(tmp_path: Path) -> None:
    backend = ScriptedBackend("x" * 300)
    backend.context_length = 1000
    context = {"session_id": "s"}
    reply = await asked(tmp_path, backend, *({"content": f"{n}" + "y" * 300, "context": context} for n in range(4)))
    assert reply["notices"] == ["the 2 oldest turns were left out: the model's context holds 1000 tokens"]
    assert [turn.content[:1] for turn in backend.prompts[-1].turns] == ["2", "x", "3"]


async def test_a_cut_is_remembered_so_that_the_front_stays_the_same(tmp_path: Path) -> None:
    backend = ScriptedBackend("x" * 100)
    backend.context_length = 1000
    context = {"session_id": "s"}
    for _ in range(2):
        await asked(tmp_path, backend, *({"content": "y" * 200, "context": context} for _ in range(6)))
    lengths = [len(prompt.turns) for prompt in backend.prompts]
    assert max(lengths) < 13
    assert all(later == before + 2 or later < before for before, later in itertools.pairwise(lengths))


async def test_the_answers_share_of_the_context_is_reserved(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    backend.context_length = 1000
    await asked(tmp_path, backend, {"content": "a"}, {"content": "a", "max_tokens": 9}, answer_tokens=800)
    assert [prompt.options.max_tokens for prompt in backend.prompts] == [500, 9]


async def test_health_shows_the_last_answers_speed(tmp_path: Path) -> None:
    reply = await asked(tmp_path, ScriptedBackend("x", WHOLE), {"content": "a"}, {"type": "health"})
    assert (reply["answered"], reply["tokens_per_second"]) == (1, 50.0)


async def test_a_draining_specialist_says_so_and_refuses(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    async with serving(backend, tmp_path) as served:
        served.specialist.draining = True
        client = await served.connect()
        with anyio.fail_after(5):
            assert (await client.ask({"type": "health"}))["status"] == "draining"
            assert (await client.ask({"content": "a"}))["code"] == "draining"
    assert backend.prompts == []
