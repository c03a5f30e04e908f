"""Whoever takes a name takes every spelling of it."""

from __future__ import annotations

from itertools import product

import pytest

from protocol import names
from protocol.errors import NotFound

WIRE_ROSTER = {
    "engram": 0, "hermes": 1, "ergon": 2, "rhetor": 3, "terma": 4, "athena": 5, "prometheus": 6,
    "harmonia": 7, "telos": 8,
    "synthesis": 9, "tekton_core": 10, "metis": 11, "apollo": 12, "penia": 13, "sophia": 14,
    "noesis": 15, "numa": 16, "hephaestus": 80,
}  # fmt: skip


def test_the_roster_is_the_wires() -> None:
    assert WIRE_ROSTER == names.OFFSETS
    assert tuple(WIRE_ROSTER) == names.ROSTER


def test_free_offsets_begin_above_the_roster() -> None:
    assert names.FIRST_FREE_OFFSET == 100
    assert max(names.OFFSETS.values()) < names.FIRST_FREE_OFFSET
    assert len(set(names.OFFSETS.values())) == len(names.OFFSETS)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("apollo", "apollo"),
        ("apollo-ai", "apollo"),
        ("apollo-ci", "apollo"),
        ("apollo_ai", "apollo"),
        ("Apollo-AI", "apollo"),
        (" apollo\n", "apollo"),
        ("tekton", "tekton_core"),
        ("tekton_core", "tekton_core"),
        ("tekton-core", "tekton_core"),
        ("tekton-ai", "tekton_core"),
        ("tekton_core-ci", "tekton_core"),
        ("Tekton-Core-AI", "tekton_core"),
        ("budget", "penia"),
        ("budget-ci", "penia"),
        ("penia-ai", "penia"),
    ],
)
def test_every_spelling_is_one_name(spelling: str, name: str) -> None:
    assert names.canonical(spelling) == name


@pytest.mark.parametrize("other", ["apollon", "apolloai", "ai", "ci", "mai", "core", "tektonik", "budgets", "my_coder"])
def test_a_near_miss_stays_what_it_is(other: str) -> None:
    assert names.canonical(other) == other


@pytest.mark.parametrize("name", [*names.ROSTER, *names.ALIASES, "my_coder"])
def test_a_canonical_name_is_its_own_canonical_name(name: str) -> None:
    for one, two in product(["", "-ai", "_ci", "-AI"], repeat=2):
        found = names.canonical(name + one + two)
        assert names.canonical(found) == found
        assert found == names.canonical(name)


@pytest.mark.parametrize("spelling", ["apollo", "apollo-ai", "apollo-ci", "APOLLO_CI"])
def test_the_wire_names_of_a_specialist(spelling: str) -> None:
    assert names.ai_id(spelling) == "apollo-ci"
    assert names.specialist_id(spelling) == "apollo-ai"


@pytest.mark.parametrize("name", names.ROSTER)
def test_wire_names_lead_back(name: str) -> None:
    assert names.canonical(names.ai_id(name)) == name
    assert names.canonical(names.specialist_id(name)) == name


def test_aliases_are_listed_with_their_name() -> None:
    assert names.spellings("tekton_core") == ("tekton",)
    assert names.spellings("penia") == ("budget",)
    assert names.spellings("apollo") == ()


def test_no_alias_hides_a_name() -> None:
    assert not set(names.ALIASES) & set(names.ROSTER)
    assert set(names.ALIASES.values()) <= set(names.ROSTER)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("apolo", "apollo"),
        ("Atena-AI", "athena"),
        ("tektn", "tekton_core"),
        ("budgt", "penia"),
        ("numa", "numa"),
    ],
)
def test_a_misspelt_name_is_recognised(typed: str, meant: str) -> None:
    assert names.near(typed, names.ROSTER)[0] == meant


def test_nothing_is_near_a_stranger() -> None:
    assert names.near("xqzw", names.ROSTER) == []


def test_only_known_names_are_suggested_and_each_once() -> None:
    assert names.near("apollo", ["athena"]) == []
    assert names.near("tekton_cor", ["tekton_core"]) == ["tekton_core"]
    assert len(names.near("e", names.ROSTER, count=2)) <= 2


def test_names_are_chosen_in_any_spelling_and_by_glob_in_the_order_of_the_team() -> None:
    assert names.chosen(["numa-ai", "Budget", "a*"], names.ROSTER) == ["athena", "apollo", "penia", "numa"]
    assert names.chosen(None, names.ROSTER) == names.chosen(["all"], names.ROSTER) == list(names.ROSTER)


def test_a_name_that_is_nobodys_is_answered_with_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean apollo"):
        names.chosen(["apolo"], names.ROSTER)


def test_some_names_are_meant_only_where_they_are_said() -> None:
    also = [names.GATEWAY]
    assert names.chosen(["Gateway", "numa"], names.ROSTER, also) == ["numa", "gateway"]
    assert names.chosen(["all", "gateway"], names.ROSTER, also) == [*names.ROSTER, "gateway"]
    for everybody in (None, ["all"], ["*"]):
        assert names.chosen(everybody, names.ROSTER, also) == list(names.ROSTER)
    assert names.chosen([], names.ROSTER, also) == []
    with pytest.raises(NotFound):
        names.chosen(["gatew*"], names.ROSTER, also)
    with pytest.raises(NotFound, match="did you mean gateway"):
        names.chosen(["gatway"], names.ROSTER, also)
