"""`chorus reload` as it is typed, and what `status` says of a configuration that has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from team import Team

from protocol.control import Change, Plan
from supervisor.cli.exits import Exit
from supervisor.cli.reload import lines

BASE = 'roster = ["apollo", "athena"]\n'
CHANGED = "the configuration has changed since the supervisor read it"


def team_of(folder: Path) -> tuple[Team, Path]:
    """A team whose roster stands in the file."""
    team = Team.start(folder, BASE)
    return team, team.home / ".config/chorus/config.toml"


def test_a_plan_says_the_same_of_several_on_one_line() -> None:
    plan = Plan(
        specialists=[
            Change("apollo", "keep"),
            Change("athena", "restart", ["persona", "port 1 -> 2"]),
            Change("metis", "restart", ["persona", "port 1 -> 2"]),
            Change("zeus", "add", ["port 3"]),
            Change("numa", "keep"),
            Change("terma", "remove"),
        ],
        live=["cost.prompt 0 -> 1"],
        later=["gateway.port 8003 -> 8004"],
    )
    assert lines(plan) == [
        "restart  athena, metis: persona, port 1 -> 2",
        "add      zeus: port 3",
        "remove   terma",
        "keep     apollo, numa",
        "live     cost.prompt 0 -> 1",
        "later    gateway.port 8003 -> 8004 (counts at the next chorus down and chorus up)",
    ]


def test_what_is_planned_is_shown_and_done(tmp_path: Path) -> None:
    team, file = team_of(tmp_path)
    with team:
        before = team.pid("apollo")
        file.write_text(BASE + "[limits]\nsilence = 30\n[specialists.athena]\npersona = 'Another.'\n")
        dry = team.run("reload", "--dry-run")
        assert (dry.returncode, dry.stderr) == (Exit.DONE, "")
        assert dry.stdout.splitlines() == [
            "restart  apollo: limits.silence 60 -> 30",
            "restart  athena: persona, limits.silence 60 -> 30",
        ]
        assert team.pid("apollo") == before
        done = team.run("reload")
        assert (done.returncode, done.stdout) == (Exit.DONE, "")
        said = done.stderr.splitlines()
        assert said[:2] == dry.stdout.splitlines()
        assert any(line.startswith(f"apollo restarted, pid {before} -> {team.pid('apollo')}, ") for line in said[2:])
        again = team.run("reload", "--json")
        assert again.returncode == Exit.DONE
        told = json.loads(again.stdout)
        assert (told["version"], told["ok"], told["dry_run"]) == (1, True, False)
        assert [change["action"] for change in told["plan"]["specialists"]] == ["keep", "keep"]


def test_every_mistake_is_printed_with_its_line_and_nothing_is_done(tmp_path: Path) -> None:
    team, file = team_of(tmp_path)
    with team:
        before = team.status()["specialists"][0]["pid"]
        file.write_text(BASE + "[supervision]\nintesity = 3\ngrace = -1\n")
        for call in (["reload"], ["reload", "--dry-run"]):
            done = team.run(*call)
            assert (done.returncode, done.stdout) == (Exit.USAGE, "")
            first, *mistakes = done.stderr.splitlines()
            assert first == "the configuration has mistakes; nothing was changed:"
            assert [line.split(": ")[0] for line in mistakes] == [f"{file}:3", f"{file}:4"]
        done = team.run("reload", "--json")
        assert done.returncode == Exit.USAGE
        assert json.loads(done.stdout)["error"]["code"] == "config"
        assert team.status()["specialists"][0]["pid"] == before


def test_without_a_team_there_is_nothing_to_reload(tmp_path: Path) -> None:
    done = Team.prepare(tmp_path).run("reload")
    assert done.returncode == Exit.NOT_RUNNING
    assert "chorus up" in done.stderr


def test_status_says_when_the_files_are_not_those_that_were_read(tmp_path: Path) -> None:
    team, file = team_of(tmp_path)
    with team:
        assert CHANGED not in team.run("status").stderr
        file.write_text(BASE + "[supervision]\nintensity = 3\n")
        said = team.run("status").stderr
        assert f"{CHANGED}: {file} (read " in said
        assert "do: chorus reload" in said
        assert team.run("reload").returncode == Exit.DONE
        assert CHANGED not in team.run("status").stderr
        file.unlink()
        assert CHANGED in team.run("status").stderr
        assert team.run("reload").returncode in (
            Exit.DONE,
            Exit.PARTIAL,
        )  # everybody of the default roster, on free ports


def test_a_file_that_is_older_than_the_one_that_was_read_is_another_file_too(tmp_path: Path) -> None:
    team, file = team_of(tmp_path)
    with team:
        os.utime(file, (1.0, 1.0))
        assert CHANGED in team.run("status").stderr


def test_a_supervisor_reads_what_it_was_started_with(tmp_path: Path) -> None:
    more = tmp_path / "more.toml"
    more.write_text("[supervision]\nintensity = 7\n")
    with Team.start(tmp_path, BASE, flags=["--config", str(more)]) as team:
        more.write_text("[supervision]\nintensity = 8\n")
        done = team.run("reload", "--dry-run")
        assert done.stdout.splitlines() == ["live  apollo, athena: intensity 7 -> 8"]
        other = team.run("--config", "/nowhere.toml", "reload", "--dry-run")
        assert (other.returncode, other.stdout) == (Exit.DONE, done.stdout)
        assert "options of this call are left out" in other.stderr
