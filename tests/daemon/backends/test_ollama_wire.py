"""What is sent to Ollama, and what its lines mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lookalikes.asking import config_for, question

from daemon.backends import Piece
from daemon.backends.ollama_wire import OllamaReading, chat_body, generate_body, load_body
from protocol.errors import BadRequest, EmptyAnswer, ModelError, Truncated
from protocol.messages import Turn

HERE = Path()


def body(can_think: bool | None = None, *, changes: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return chat_body("tiny", question(**options), config_for("", HERE, **(changes or {})), can_think)


def line(content: str = "", **more: Any) -> bytes:
    return json.dumps({"message": {"role": "assistant", "content": content}, "done": False, **more}).encode()


# -- requests ---------------------------------------------------------------------------------------------------------


def test_the_system_text_comes_first_and_then_the_turns() -> None:
    prompt = question("Why?", Turn("user", "Hi"), Turn("assistant", "Hello"))
    messages = chat_body("tiny", prompt, config_for("", HERE), None)["messages"]
    assert [(turn.role, turn.content) for turn in messages] == [
        ("system", "You are Apollo."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Why?"),
    ]


def test_it_streams_cuts_nothing_and_leaves_the_model_loaded_as_it_is() -> None:
    sent = body()
    assert sent["stream"] is True
    assert sent["truncate"] is False
    assert "keep_alive" not in sent


def test_options_are_the_profile_then_the_specialists_then_the_requests() -> None:
    changes = {
        "profile": {"num_ctx": 8192, "top_k": 1},
        "options": {"top_k": 2, "temperature": 0.1, "top_p": 0.5},
    }
    assert body(changes=changes, temperature=0.9, seed=7, stop="END")["options"] == {
        "num_ctx": 8192,
        "top_k": 2,
        "top_p": 0.5,
        "temperature": 0.9,
        "seed": 7,
        "stop": ["END"],
        "num_predict": 2048,
    }


def test_a_specialist_cannot_bring_a_load_time_option() -> None:
    assert "num_ctx" not in body(changes={"options": {"num_ctx": 1}})["options"]
    assert body(changes={"profile": {"num_ctx": 2}, "options": {"num_ctx": 1}})["options"]["num_ctx"] == 2


def test_the_answer_is_always_limited() -> None:
    assert body(changes={"answer_tokens": 99})["options"]["num_predict"] == 99
    assert body(changes={"answer_tokens": 99}, max_tokens=5)["options"]["num_predict"] == 5
    assert body(changes={"profile": {"num_predict": -1}})["options"]["num_predict"] == 2048
    assert body(max_tokens=10**30)["options"]["num_predict"] == 2**31 - 1


@pytest.mark.parametrize("can_think", [True, None])
def test_thinking_is_off_unless_asked_for(can_think: bool | None) -> None:
    assert body(can_think)["think"] is False
    assert body(can_think, think="high")["think"] == "high"


def test_a_model_that_cannot_think_is_not_told_about_it() -> None:
    assert "think" not in body(False)
    assert "think" not in body(False, think=False)
    with pytest.raises(BadRequest, match="tiny cannot think"):
        body(False, think="low")


def test_a_format_is_passed_on() -> None:
    assert body(format="json")["format"] == "json"
    assert "format" not in body()


def test_for_an_old_server_the_turns_become_one_text() -> None:
    config = config_for("", HERE)
    assert generate_body("tiny", question("Why?"), config, None)["prompt"] == "Why?"
    sent = generate_body("tiny", question("Why?", Turn("user", "Hi"), Turn("assistant", "Hello")), config, None)
    assert sent["prompt"] == "User: Hi\n\nAssistant: Hello\n\nUser: Why?\n\nAssistant:"
    assert sent["system"] == "You are Apollo."


def test_a_load_carries_the_profile_alone() -> None:
    config = config_for("", HERE, profile={"num_ctx": 8192}, options={"top_k": 1})
    assert load_body("tiny", config) == {"model": "tiny", "messages": [], "options": {"num_ctx": 8192}}


# -- answers ----------------------------------------------------------------------------------------------------------


def test_all_lines_of_one_read_become_one_piece() -> None:
    assert OllamaReading("u").take([line("a"), b"", line("b"), line("c")]) == Piece("abc")


def test_a_reset_of_thinking_and_content_in_one_read_keeps_both() -> None:
    lines = [b'{"message":{"content":"","thinking":"hm"}}', line("so")]
    assert OllamaReading("u").take(lines) == Piece("so", "hm")


def test_lines_of_the_older_path_are_read_too() -> None:
    assert OllamaReading("u").take([b'{"response":"a","thinking":"b"}']) == Piece("a", "b")


def test_text_in_the_last_line_counts() -> None:
    reading = OllamaReading("u")
    assert reading.take([line("a"), line("!", done=True)]) == Piece("a!")
    assert reading.over


def test_what_stood_before_an_error_in_the_same_read_is_not_lost() -> None:
    reading = OllamaReading("u")
    assert reading.take([line("a"), b'{"error":"boom"}', line("b")]) == Piece("a")
    assert reading.over
    with pytest.raises(ModelError, match="boom"):
        reading.finish()


@pytest.mark.parametrize("raw", [b"<html>", b'{"message":3}', b'{"message":{"content":"\xff"}}', b"[" * 9999, b"{"])
def test_a_line_that_is_no_event_is_a_model_error(raw: bytes) -> None:
    reading = OllamaReading("u")
    reading.take([line("a"), raw])
    with pytest.raises(ModelError, match="no event of Ollama"):
        reading.finish()


def test_without_a_last_line_it_is_truncated() -> None:
    reading = OllamaReading("u")
    reading.take([line("a")])
    with pytest.raises(Truncated):
        reading.finish()


def test_the_figures_are_the_servers() -> None:
    reading = OllamaReading("u")
    prompt = {"prompt_eval_count": 100, "prompt_eval_duration": 500_000_000, "load_duration": 3_000_000}
    answer = {"eval_count": 30, "eval_duration": 2_000_000_000, "done_reason": "length", "done": True}
    reading.take([line("a"), json.dumps(prompt | answer).encode()])
    end = reading.finish()
    assert (end.done_reason, end.prompt_tokens, end.completion_tokens) == ("length", 100, 30)
    assert (end.tokens_per_second, end.prompt_tokens_per_second) == (15.0, 200.0)
    assert (end.load_ms, end.prompt_ms) == (3.0, 500.0)


def test_figures_that_are_not_there_are_not_made_up() -> None:
    reading = OllamaReading("u")
    reading.take([line("a", done=True)])
    end = reading.finish()
    assert (end.done_reason, end.prompt_tokens, end.tokens_per_second, end.load_ms) == (
        "stop",
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("thinking", "reason", "says"),
    [
        ("", "stop", "without a single character"),
        ("hm", "stop", "thought"),
        ("hm", "length", "raise max_tokens"),
    ],
)
def test_an_answer_without_content_is_empty(thinking: str, reason: str, says: str) -> None:
    reading = OllamaReading("u")
    reading.take(
        [
            json.dumps({"message": {"content": "", "thinking": thinking}}).encode(),
            line(done=True, done_reason=reason),
        ]
    )
    with pytest.raises(EmptyAnswer, match=says):
        reading.finish()


def test_an_inline_think_tag_that_never_ends_is_thinking_alone() -> None:
    reading = OllamaReading("u")
    assert reading.take([line("<think>a</th"), line(done=True, done_reason="length")]) == Piece("", "a")
    assert reading.rest() == Piece("", "</th")
    with pytest.raises(EmptyAnswer):
        reading.finish()
