"""`chorus history`: what the specialists remember, and that what is deleted is gone."""

from __future__ import annotations

import json
import os
import pty
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from team import ModelServer, Team

from protocol.messages import StoredTurn
from supervisor.cli.exits import Failure
from supervisor.cli.history import paired, understood


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture
def team(server: ModelServer, tmp_path: Path) -> Iterator[Team]:
    """Three questions, in this order, to two of them."""
    with Team.start(tmp_path, "", ["apollo", "athena"], server.env) as team:
        for name, session, text in (
            ("apollo", "s1", "first things"),
            ("athena", "s1", "Second\nthings"),
            ("apollo", "s2", "third"),
        ):
            assert team.run("ask", name, "--session", session, text).returncode == 0
        yield team


def test_turns_are_listed_newest_last(team: Team) -> None:
    done = team.run("history")
    told = [re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "WHEN", line) for line in done.stdout.splitlines()[::2]]
    assert told == [
        "1  apollo  WHEN  you: first things",
        "2  athena  WHEN  you: Second things",
        "3  apollo  WHEN  you: third",
    ]
    assert done.stdout.splitlines()[1].strip() == "apollo: Hello, world"


def test_a_name_a_session_and_a_count_choose(team: Team) -> None:
    assert team.run("history", "apollo-ai").stdout.count("you: ") == 2
    assert team.run("history", "apollo", "--session", "s2").stdout.count("you: ") == 1
    assert "you: third" in team.run("history", "-n", "1").stdout


def test_search_finds_words_in_any_case(team: Team) -> None:
    assert team.run("history", "search", "SECOND").stdout.startswith("2  athena")
    assert team.run("history", "apollo", "search", "second").stdout == ""
    assert team.run("history", "search", "hello,", "world").stdout.count("you: ") == 3


def test_show_is_one_turn_whole(team: Team) -> None:
    shown = team.run("history", "show", "2").stdout
    assert shown.startswith("== 2  athena  ")
    assert shown.endswith("==\nyou: Second\nthings\n\nathena: Hello, world\n")
    assert "you: third" in team.run("history", "apollo", "show", "2").stdout
    assert team.run("history", "show", "4").returncode == 1
    assert team.run("history", "show", "x").returncode == 2


def test_export_is_everything(team: Team) -> None:
    assert team.run("history", "export").stdout.count("\nyou: ") == 3
    exported = json.loads(team.run("history", "export", "--json").stdout)
    assert exported["version"] == 1
    assert [(one["name"], one["question"]) for one in exported["history"]] == [
        ("apollo", "first things"),
        ("athena", "Second\nthings"),
        ("apollo", "third"),
    ]


def test_a_session_is_deleted_everywhere(team: Team) -> None:
    done = team.run("history", "rm", "--session", "s1", "--yes")
    assert (done.returncode, done.stderr) == (0, "deleted 2 of 2 turns of everybody\n")
    assert [one["question"] for one in json.loads(team.run("history", "--json").stdout)["history"]] == ["third"]


@pytest.mark.parametrize("args", [["apollo", "rm", "--all"], ["rm", "apollo", "--all"]], ids=" ".join)
def test_all_of_one_of_them_is_deleted(team: Team, args: list[str]) -> None:
    assert team.run("history", *args, "--yes").stderr == "deleted 2 of 2 turns of apollo\n"
    assert "athena" in team.run("history").stdout


def test_what_is_deleted_leaves_no_byte(team: Team) -> None:
    team.run("history", "rm", "--all", "--yes")
    for file in (team.home / ".local/share").rglob("*.db*"):
        assert b"things" not in file.read_bytes()


def test_rm_needs_to_know_what(team: Team) -> None:
    for args in ([], ["--session", "s1", "--all"], ["apollo"]):
        assert team.run("history", "rm", *args, "--yes").returncode == 2


def test_at_a_terminal_it_asks_first(team: Team) -> None:
    ours, theirs = pty.openpty()
    process = team.popen("history", "rm", "--all", stdin=theirs)
    os.write(ours, b"n\n")
    _out, err = process.communicate(timeout=10)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 1
    assert b"delete 3 turns of everybody? [y/N]" in err
    assert team.run("history").stdout.count("you: ") == 3


def test_one_that_does_not_run_is_named(team: Team) -> None:
    team.run("stop", "athena")
    done = team.run("history")
    assert (done.returncode, done.stdout.count("you: ")) == (0, 2)
    assert "athena is not running" in done.stderr
    assert team.run("history", "athena").returncode == 3
    assert team.run("history", "apolo").returncode == 4


def test_names_and_verbs_are_told_apart() -> None:
    assert understood([]) == (None, None, [])
    assert understood(["apollo"]) == ("apollo", None, [])
    assert understood(["search", "a", "b"]) == (None, "search", ["a", "b"])
    assert understood(["apollo", "show", "1"]) == ("apollo", "show", ["1"])
    with pytest.raises(Failure):
        understood(["apollo", "burn"])


def test_turns_are_paired_by_session() -> None:
    turns = [
        StoredTurn(s, role, text, at, None)
        for s, role, text, at in (
            ("a", "assistant", "of a question that was deleted", 1.0),
            ("a", "user", "q", 2.0),
            ("b", "user", "asked meanwhile", 3.0),
            ("a", "assistant", "r", 4.0),
            ("b", "assistant", "s", 5.0),
        )
    ]
    assert [(one.question, one.answer, one.at) for one in paired("apollo", turns)] == [
        ("q", "r", 2.0),
        ("asked meanwhile", "s", 3.0),
    ]
