"""The rules on disk: in force at once for whoever asks, and whatever is done to the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.control import SpecialistStatus
from protocol.errors import Unavailable
from supervisor.team.routing import Orchestration, Rule
from supervisor.team.rulebook import FILE, Rulebook

TEAM = [
    SpecialistStatus(name=name, ai_id=name, host="127.0.0.1", port=1, state="ready", wanted="up")
    for name in ("apollo", "metis", "athena")
]
BY_TURNS = Orchestration([Rule("plan", ["metis", "athena"], "round-robin")])


def answers(book: Rulebook, message: str = "a plan") -> str:
    choice = book.choose(message, TEAM)
    assert choice is not None
    return choice.chosen[0]


def test_without_a_file_there_are_no_rules(tmp_path: Path) -> None:
    assert Rulebook(tmp_path / "state").rules == Orchestration()


def test_what_one_writes_is_in_force_for_the_other_at_once(tmp_path: Path) -> None:
    writer, reader = Rulebook(tmp_path / "state"), Rulebook(tmp_path / "state")
    assert answers(reader) == "apollo"
    writer.write(BY_TURNS)
    assert writer.rules == reader.rules == BY_TURNS
    assert answers(reader) == "metis"
    writer.write(Orchestration())
    assert answers(reader) == "apollo"


def test_turns_are_taken_rule_by_rule(tmp_path: Path) -> None:
    book = Rulebook(tmp_path)
    book.write(Orchestration([*BY_TURNS.routing_rules, Rule("week", ["apollo", "metis"], "round-robin")]))
    messages = ["plan", "week", "plan", "week", "plan"]
    assert [answers(book, message) for message in messages] == ["metis", "apollo", "athena", "metis", "metis"]


@pytest.mark.parametrize("broken", [b"{", b"[]", b'{"routing_rules": [{"pattern": "(", "specialists": ["metis"]}]}'])
def test_a_file_that_somebody_broke_leaves_the_rules_before_it(
    tmp_path: Path, broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    book = Rulebook(tmp_path)
    book.write(BY_TURNS)
    assert book.rules == BY_TURNS
    (tmp_path / FILE).write_bytes(broken)
    assert book.rules == book.rules == BY_TURNS
    assert len([record for record in caplog.records if "is left out" in record.message]) == 1


def test_a_file_that_is_removed_takes_the_rules_with_it(tmp_path: Path) -> None:
    book = Rulebook(tmp_path)
    book.write(BY_TURNS)
    assert book.rules == BY_TURNS
    (tmp_path / FILE).unlink()
    assert book.rules == Orchestration()


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    with pytest.raises(Unavailable, match="the rules are what they were"):
        Rulebook(tmp_path / "state").write(BY_TURNS)
