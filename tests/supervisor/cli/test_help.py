"""`chorus help`: every topic has a text, and what the texts say agrees with the code."""

from __future__ import annotations

import re

import pytest

from protocol.codec import REQUEST_TYPES
from protocol.errors import BY_CODE
from supervisor.cli.exits import Exit
from supervisor.cli.help import TOPICS, text_of
from supervisor.config import VARIABLES


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_has_a_text_that_fits_a_terminal(topic: str) -> None:
    text = text_of(topic)
    assert text.endswith("\n")
    assert max(map(len, text.splitlines())) <= 120


def test_every_exit_code_is_explained() -> None:
    explained = {int(code) for code in re.findall(r"^(\d+) ", text_of("exit-codes"), re.MULTILINE)}
    assert explained == set(Exit)


def test_every_request_and_every_error_code_is_explained() -> None:
    words = set(re.findall(r"[a-z_]+", text_of("wire")))
    assert set(REQUEST_TYPES) <= words
    assert set(BY_CODE) <= words


def test_every_variable_is_explained() -> None:
    assert set(VARIABLES) <= set(re.findall(r"[A-Z_]+", text_of("environment")))
