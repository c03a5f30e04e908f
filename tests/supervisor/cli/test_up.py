"""Starting the team, wherever one stands."""

from __future__ import annotations

from pathlib import Path

from team import Team


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
