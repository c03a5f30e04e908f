"""Some of the team, live and as the last supervisor wrote it."""

from __future__ import annotations

import json
from pathlib import Path

from team import Team

from supervisor.cli.exits import Exit


def test_a_watch_is_of_those_who_were_named(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=["apollo", "athena"]) as team:
        assert team.run("status", "--watch", "--json", "nobody").returncode == Exit.NO_SUCH_SPECIALIST
        watching = team.popen("status", "--watch", "--json", "apollo-ai")
        assert watching.stdout
        told = [json.loads(watching.stdout.readline())]
        assert team.run("restart", "athena", "apollo").returncode == 0
        while told[-1].get("to") != "ready":
            told.append(json.loads(watching.stdout.readline()))
        watching.kill()
        watching.communicate()
    assert [one["name"] for one in told[0]["status"]["specialists"]] == ["apollo"]
    assert {one["name"] for one in told[1:]} == {"apollo"}


def test_names_mean_the_same_when_the_team_is_down(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=["apollo", "athena", "hermes"]) as team:
        team.down()
        for names, shown in (["a*"], 2), (["all"], 3), (["Apollo-AI", "apollo"], 1):
            done = team.run("status", "--json", *names)
            assert (done.returncode, len(json.loads(done.stdout)["specialists"])) == (Exit.NOT_RUNNING, shown)
        assert team.run("status", "nobody").returncode == Exit.NO_SUCH_SPECIALIST
