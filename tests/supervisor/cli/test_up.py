"""Starting the team, wherever one stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from keeping import BACKEND
from team import Team

from supervisor.cli.up import is_restarted
from supervisor.config import load
from supervisor.fleet.registry import Registry


def test_folders_of_the_same_names_where_one_stands_are_not_ours(tmp_path: Path) -> None:
    with Team.prepare(tmp_path, roster=["apollo"]) as team:
        for name in ("protocol", "daemon", "supervisor"):
            (team.home / name).mkdir()
            (team.home / name / "__init__.py").touch()
        team.is_up = True
        assert team.run("up").returncode == 0


def test_a_supervisor_that_ends_at_once_says_why(tmp_path: Path) -> None:
    with Team.prepare(tmp_path, roster=["apollo"]) as team:
        (tmp_path / "taken").touch()
        done = team.run("up", env={"CHORUS_SOCKET": str(tmp_path / "taken/control.sock")})
    assert done.returncode == 1
    assert done.stderr.startswith("error: the supervisor ended at once: ")
    assert "taken" in done.stderr


def test_two_at_the_same_moment_are_one_team(tmp_path: Path) -> None:
    with Team.prepare(tmp_path, roster=["apollo"]) as team:
        team.is_up = True
        both = [team.popen("up") for _ in range(2)]
        said = [one.communicate(timeout=20)[1].decode() for one in both]
        assert [one.returncode for one in both] == [0, 0], said
        assert sum("already running" in one for one in said) == 1


@pytest.mark.parametrize(
    ("result", "state", "kept"),
    [
        *((result, "running", True) for result in ("signal", "watchdog", "exit-code", "core-dump", "oom-kill")),
        ("success", "running", False),  # asked to end, and the last word was not written any more
        ("timeout", "running", False),  # asked to end, and did not hear
        ("signal", "stopping", False),  # died while it went down
        ("exit-code", "down", False),
        (None, "running", False),  # no unit
    ],
)
async def test_after_the_end_of_a_unit_the_specialists_stay_where_a_supervisor_follows(
    tmp_path: Path, result: str | None, state: str, kept: bool
) -> None:
    loaded = load({}, None, {"HOME": str(tmp_path)})
    registry = Registry(loaded.dirs.state / "registry.json", [], BACKEND)
    if state != "running":
        registry.set_state(state)
    registry.write()
    assert is_restarted(loaded, {"SERVICE_RESULT": result} if result else {}) is kept


async def test_where_nothing_was_ever_written_nobody_is_kept(tmp_path: Path) -> None:
    assert not is_restarted(load({}, None, {"HOME": str(tmp_path)}), {"SERVICE_RESULT": "signal"})
