"""Patterns mean what they mean to Python's `re`, and take no longer for a message that was made for them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.team.pattern import DEEPEST, LONGEST, MOST_STATES, BadPattern, Pattern

LETTERS = "abAB_1 -."
ATOMS = st.sampled_from(
    [
        "a",
        "b",
        "A",
        "1",
        " ",
        "_",
        r"\.",
        ".",
        "[ab]",
        "[^a]",
        "[A-B1]",
        r"[\w-]",
        r"[^\s_]",
        r"\d",
        r"\W",
        "^",
        "$",
        r"\b",
        r"\B",
    ]
)
REPEATS = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,}", "{0,2}", "*?", "{,x}"])


def patterns() -> st.SearchStrategy[str]:
    """Expressions of everything that there is, groups within groups."""

    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        one = st.builds("{}{}".format, st.one_of(ATOMS, inner.map("({})".format), inner.map("(?:{})".format)), REPEATS)
        return st.builds("|".join, st.lists(st.builds("".join, st.lists(one, max_size=4)), min_size=1, max_size=3))

    return st.recursive(ATOMS, larger, max_leaves=12)


def oracle(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern.replace("$", r"\Z"), re.IGNORECASE)
    except re.error:
        return None


@given(patterns(), st.lists(st.text(LETTERS, min_size=1, max_size=12), min_size=1, max_size=4))
def test_it_finds_what_re_finds(text: str, messages: list[str]) -> None:
    expected = oracle(text)
    try:
        pattern = Pattern(text)
    except BadPattern as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert expected is None or "is repeated" in refused or "a repetition of" in refused, text
        return
    assert expected is not None, text
    for message in messages:
        assert pattern.found_in(message) is bool(expected.search(message)), (text, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(a+)+$", "a" * 2000 + "b"),
        ("(a|a)*c", "a" * 2000),
        (".*.*.*.*.*x", "y" * 2000),
        (r"(\w+\s?)*!", "word " * 400),
    ],
)
def test_no_message_takes_it_long(text: str, message: str) -> None:
    """With `re` the first of these would not end in a lifetime: that this returns is the claim."""
    assert not Pattern(text).found_in(message)


def test_what_it_remembers_is_bounded() -> None:
    pattern = Pattern("(a|b)*a" + "(a|b)" * 12 + "c")
    for number in range(1 << 13):
        pattern.found_in(f"{number:013b}".replace("0", "a").replace("1", "b"))
    assert len(pattern._states) <= MOST_STATES


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(", "a ( without its ), at character 1"),
        ("plan)", "a ) without its (, at character 5"),
        ("[a", "a [ without its ], at character 1"),
        ("+a", "a + with nothing before it to repeat, at character 1"),
        ("a**", "a repetition of a repetition"),
        ("a{3,2}", "repeats too often, or less than never"),
        ("a{9999}", "repeats too often, or less than never"),
        ("((a{100}){100}){100}", "it is too large"),
        ("(?=a)", "(?…) of this kind is not known here"),
        (r"(a)\1", r"\1 is not known here"),
        ("a\\", "an escape that is cut off"),
        ("[z-a]", "z-a is a range from behind"),
        ("(" * 21 + ")" * 21, f"more than {DEEPEST} groups"),
        ("a" * (LONGEST + 1), f"a pattern has at most {LONGEST} characters"),
    ],
)
def test_what_is_none_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(BadPattern) as told:
        Pattern(text)
    assert said in str(told.value)


def test_an_end_that_was_cut_off_is_no_end() -> None:
    assert Pattern("b$").found_in("ab")
    assert not Pattern("b$").found_in("ab", is_whole=False)
