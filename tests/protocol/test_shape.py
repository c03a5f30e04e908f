"""Every mistake in a document is told, with its path."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct

from protocol.shape import Mistake, mistakes


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1)]
    kind: Literal["a", "b"] = "a"


class Whole(Struct, frozen=True):
    parts: Annotated[list[Part], Meta(min_length=1, max_length=2)]
    limits: dict[str, Annotated[float, Meta(gt=0)]] = {}
    part: Part = Part("x")
    note: str | None = None


@pytest.mark.parametrize(
    "value",
    [
        {"parts": [{"name": "x"}]},
        {"parts": [{"name": "x", "kind": "b"}], "limits": {"x": 1}, "note": None, "more": 1},
        {"parts": [{"name": "x"}, {"name": "y"}], "part": {"name": "z"}, "note": "n"},
    ],
)
def test_what_is_right_has_no_mistakes(value: Any) -> None:
    assert mistakes(value, Whole) == []


def test_all_of_them_are_told_at_once() -> None:
    value = {
        "parts": [{"name": "", "kind": "c"}, {"knd": "a"}],
        "limits": {"x": 0, "y": "z"},
        "part": 7,
        "note": 3,
    }
    assert mistakes(value, Whole) == [
        Mistake("parts[0].name", "str of length >= 1", '""'),
        Mistake("parts[0].kind", 'one of "a", "b"', '"c"'),
        Mistake("parts[1].name", "a value", "nothing"),
        Mistake("parts[1].knd", "kind", "a name that is not known"),
        Mistake("limits.x", "float > 0.0", "0"),
        Mistake("limits.y", "float", '"z"'),
        Mistake("part", "object", "7"),
        Mistake("note", "str | null", "3"),
    ]


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ([], Mistake("", "object", "array of 0")),
        ({}, Mistake("parts", "a value", "nothing")),
        ({"parts": []}, Mistake("parts", "array of length >= 1", "array of 0")),
        ({"parts": {}}, Mistake("parts", "array", "object")),
        ({"parts": [{"name": "x" * 99}] * 3}, Mistake("parts", "array of length <= 2", "array of 3")),
    ],
)
def test_a_container_that_is_wrong_is_not_looked_into(value: Any, wrong: Mistake) -> None:
    assert mistakes(value, Whole) == [wrong]


def test_a_mistake_is_a_sentence() -> None:
    assert Mistake("a[0].b", "str", "3").sentence == "a[0].b: expected str, got 3"
    assert Mistake("", "object", "3").sentence == "expected object, got 3"
