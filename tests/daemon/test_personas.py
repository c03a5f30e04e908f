"""The personas: everybody has one, and no two are alike."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import pytest

from protocol.names import ROSTER
from supervisor.config import load, resolve, team
from supervisor.roster import Persona, persona

TABLES = tomllib.loads(files("daemon").joinpath("personas.toml").read_text("utf-8"))
PREAMBLE = TABLES.pop("preamble").strip()


def sentences(text: str) -> set[str]:
    return {part.strip().lower() for part in re.split(r"[.?!:;]\s+", text) if part.strip()}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{4,}", text.lower()))


def test_all_eighteen_are_there_in_the_order_of_the_roster() -> None:
    assert tuple(TABLES) == ROSTER


@pytest.mark.parametrize("name", ROSTER)
def test_a_persona_is_short_enough_for_a_small_model(name: str) -> None:
    one = Persona(**TABLES[name])
    assert 60 <= len(one.persona.split()) <= 130
    assert 2 <= len(one.role.split()) <= 4
    assert one.description.endswith(".")
    assert one.description.count(".") == 1
    assert 3 <= len(one.capabilities) <= 6
    assert one.capabilities == [word.lower() for word in one.capabilities]
    assert all(len(capability.split()) <= 2 for capability in one.capabilities)


@pytest.mark.parametrize("name", ROSTER)
def test_a_persona_names_itself_and_a_colleague(name: str) -> None:
    text = TABLES[name]["persona"]
    myself = name.removesuffix("_core").title()
    assert text.startswith(f"You are {myself}")
    others = {one.removesuffix("_core").title() for one in ROSTER} - {myself}
    assert words(" ".join(others)) & words(text) or "colleague" in text


def test_no_two_share_a_sentence() -> None:
    for one, other in combinations(ROSTER, 2):
        assert not sentences(TABLES[one]["persona"]) & sentences(TABLES[other]["persona"]), (one, other)


def test_no_two_are_alike() -> None:
    for one, other in combinations(ROSTER, 2):
        mine, theirs = words(TABLES[one]["persona"]), words(TABLES[other]["persona"])
        assert len(mine & theirs) / len(mine | theirs) < 0.25, (one, other)
        assert TABLES[one]["role"] != TABLES[other]["role"]


def test_every_prompt_begins_with_the_same_bytes(tmp_path: Path) -> None:
    text = '[specialists.apollo]\npersona = "Mine."\n'
    (tmp_path / "c.toml").write_text(text)
    environ = {"HOME": str(tmp_path), "CHORUS_ROSTER": ",".join([*ROSTER, "zeus"])}
    prompts = [one.persona for one in team(load({}, tmp_path / "c.toml", environ))]
    assert all(prompt.startswith(PREAMBLE + "\n\n") for prompt in prompts)
    assert prompts[ROSTER.index("apollo")] == f"{PREAMBLE}\n\nMine."
    assert len(set(prompts)) == len(prompts)


def test_a_stranger_is_introduced_by_name_and_description(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('roster = ["zeus"]\n[specialists.zeus]\ndescription = "Watches the weather."\n')
    zeus = resolve(load({}, tmp_path / "c.toml", {"HOME": str(tmp_path)}), "zeus")
    assert "You are Zeus. Your field is this: Watches the weather." in zeus.persona
    assert zeus.description == "Watches the weather."


def test_a_stranger_without_a_description_has_a_persona_too(tmp_path: Path) -> None:
    loaded = load({}, None, {"HOME": str(tmp_path), "CHORUS_ROSTER": "north_wind"})
    who = persona("north_wind", loaded.settings)
    assert who.persona.startswith("You are North Wind. ")
    assert who.description == "North Wind, a specialist of your own."
