"""The built-in echo."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest
from lookalikes.asking import config_for, content, finish, question, running, steps_of, text_of

from daemon.backends import Piece, Prompt
from daemon.backends.builtin import Builtin, echo, words
from daemon.prompt import user_turn
from protocol.errors import NotFound
from protocol.messages import Context, Options, Turn


def echo_of(context: Context, content: str, *earlier: Turn) -> str:
    return echo(Prompt("", [*earlier, Turn("user", user_turn(context, content))], Options()))


def test_its_first_sentence_says_what_it_is_and_how_to_get_a_model() -> None:
    said = echo_of(Context(), "Why?")
    first, _, rest = said.partition(". ")
    assert "not a language model" in first
    assert "built-in echo" in first
    assert "`ollama pull llama3.2`" in rest


def test_it_repeats_the_question_and_every_bit_of_context() -> None:
    context = Context(
        memory_hints=["likes tea", "is 40"], previous_specialist="athena", previous_response="One.\n\nTwo."
    )
    said = echo_of(context, "Why?\n\nReally?", Turn("user", "Hi"), Turn("assistant", "Hello"))
    assert "Context: likes tea; is 40" in said
    assert "athena answered before you:\n> One." in said
    assert "> Two." in said
    assert "Earlier turns that reached me: 2." in said
    assert said.endswith("You asked: Why?\n\nReally?")


def test_a_previous_answer_that_is_the_question_too_keeps_its_author() -> None:
    said = echo_of(Context(previous_ai="apollo", previous_response="It rains."), "It rains.")
    assert "apollo answered as follows" in said
    assert said.endswith("You asked: > It rains.")


def test_long_parts_are_shortened_and_the_rest_is_brief() -> None:
    context = Context(memory_hints=["h" * 5000], previous_specialist="athena", previous_response="p" * 5000)
    assert len(echo_of(context, "q" * 5000)) < 1500
    assert len(words(echo_of(Context(), "x"))) < 60


def test_the_same_question_gives_the_same_answer() -> None:
    assert echo_of(Context(), "Why?") == echo_of(Context(), "Why?")


@pytest.mark.parametrize("text", ["", "a", " a  b\n\nc ", "\n", "Zürich 🎵\tx"])
def test_tokens_put_together_are_the_text(text: str) -> None:
    assert "".join(words(text)) == text


async def test_it_streams_word_by_word_at_its_pace_beginning_at_once(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        began = anyio.current_time()
        first = None
        steps = []
        async for step in Builtin(config_for("", tmp_path, pace=400.0)).generate(question()):
            first = first or anyio.current_time() - began
            steps.append(step)
    count = sum(isinstance(step, Piece) for step in steps)
    assert first is not None
    assert first < 0.01
    assert anyio.current_time() - began >= (count - 1) / 400
    assert finish(steps).completion_tokens == count
    assert finish(steps).done_reason == "stop"


async def test_max_tokens_cuts_it(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        steps = await steps_of(Builtin(config_for("", tmp_path, pace=9999.0)), question(max_tokens=3))
    assert content(steps) == "I am the"
    assert finish(steps).done_reason == "length"
    assert finish(steps).completion_tokens == 3


async def test_leaving_ends_it(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        answer = Builtin(config_for("", tmp_path, pace=0.001)).generate(question())
        assert isinstance(answer, AsyncGenerator)
        assert await anext(answer) == Piece("I")
        with anyio.move_on_after(0.01) as scope:
            await anext(answer)
    assert scope.cancelled_caught


async def test_it_is_ready_and_says_what_it_is(tmp_path: Path) -> None:
    with anyio.fail_after(5):
        async with running(Builtin(config_for("", tmp_path))) as backend:
            assert (backend.kind, backend.model, backend.state.state) == ("builtin", "builtin", "ready")
            assert backend.state.url is None
            assert "ollama pull llama3.2" in backend.note
            assert "Why?" in await text_of(backend, question(max_tokens=9999))
            with pytest.raises(NotFound, match="builtin backend has no embeddings"):
                await backend.embed(["a"], None)
