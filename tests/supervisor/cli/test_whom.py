"""Names that are misspelt, and words that only look like names."""

from __future__ import annotations

import pytest

from protocol import names
from supervisor.cli.whom import mistakes, near_miss

ORDINARY = """
    what who how why is are the a an write explain summarize summarise compare list term terms tells metric meets budgets
    harmony harmonic synthesize synthesise athens heroes engine person hello please translate fix num nuke tomato total
    numb puma sum tell team theory noise noises metal metrics argon thermal apollo's "apollo," C++ 42 tests test
""".split()  # noqa: SIM905 - one word a line otherwise


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("apolo", "apollo"),
        ("appollo", "apollo"),
        ("aplolo", "apollo"),
        ("Athna-AI", "athena"),
        ("promethues", "prometheus"),
        ("hephestus", "hephaestus"),
        ("tektno", "tekton_core"),
        ("tekton-cor", "tekton_core"),
    ],
)
def test_one_typing_mistake_is_a_near_miss(typed: str, meant: str) -> None:
    assert near_miss(typed, names.ROSTER) == [meant]


@pytest.mark.parametrize("word", ORDINARY)
def test_a_word_of_a_question_is_not(word: str) -> None:
    assert near_miss(word, names.ROSTER) == []


@pytest.mark.parametrize(
    ("typed", "meant", "count"),
    [("abc", "abc", 0), ("ab", "abc", 1), ("abcd", "abc", 1), ("acb", "abc", 1), ("xbc", "abc", 1), ("", "abc", 3)],
)
def test_mistakes_are_counted(typed: str, meant: str, count: int) -> None:
    assert mistakes(typed, meant, 9) == count
