"""The leading <think> tag, at every cut."""

from __future__ import annotations

import itertools

import pytest

from daemon.backends.thinking import ThinkSplitter


def split(*pieces: str) -> tuple[str, str]:
    splitter = ThinkSplitter()
    parts = [splitter.split(piece) for piece in pieces] + [splitter.rest()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


@pytest.mark.parametrize(
    ("text", "thinking", "content"),
    [
        ("<think>hm</think>Yes", "hm", "Yes"),
        ("\n<think>\nhm\n</think>\n\nYes", "\nhm\n", "Yes"),
        ("<think></think>Yes", "", "Yes"),
        ("<think>a</thin</think>b", "a</thin", "b"),
        ("<think>never ends", "never ends", ""),
        ("<think>cut in the tag</thi", "cut in the tag</thi", ""),
        ("Yes <think>an example</think>", "", "Yes <think>an example</think>"),
        ("<thinking is hard", "", "<thinking is hard"),
        ("<th", "", "<th"),
        ("  Yes", "", "  Yes"),
        ("", "", ""),
        ("<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
    ],
)
def test_every_cut_into_three_pieces_gives_the_same(text: str, thinking: str, content: str) -> None:
    for first, second in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        assert split(text[:first], text[first:second], text[second:]) == (thinking, content)


def test_one_character_at_a_time_gives_the_same() -> None:
    assert split(*"<think>why\n</think>\n\nBecause") == ("why\n", "Because")


def test_it_is_settled_as_soon_as_the_start_is_no_tag() -> None:
    splitter = ThinkSplitter()
    assert splitter.split("H") == ("", "H")
    assert splitter.settled


def test_it_is_settled_once_content_follows_the_closing_tag() -> None:
    splitter = ThinkSplitter()
    splitter.split("<think>a</think>\n")
    assert not splitter.settled
    splitter.split("\nb")
    assert splitter.settled


def test_thinking_is_handed_out_before_its_end_is_known() -> None:
    assert ThinkSplitter().split("<think>step one") == ("step one", "")
