"""Some of the team, live and as the last supervisor wrote it."""

from __future__ import annotations

import json
from pathlib import Path

from msgspec.structs import replace
from team import Team

from protocol.control import BackendStatus, GatewayStatus, SpecialistStatus, StatusReport, SupervisorStatus
from supervisor.cli.exits import Exit
from supervisor.cli.status import _row, advice

READY = SpecialistStatus(name="apollo", ai_id="apollo-ci", host="127.0.0.1", port=1, state="ready", wanted="up")


def test_one_that_was_recycled_says_why_until_it_is_started_for_another_reason() -> None:
    cause = "recycled: 612 MiB of memory, more than 512 MiB"
    recycled = replace(READY, recycled=1, started_because=cause)
    assert _row(recycled)[-1] == cause
    assert _row(replace(recycled, started_because="asked to restart"))[-1] == "-"


def test_what_will_happen_to_somebody_is_said_below_the_table() -> None:
    report = StatusReport(
        supervisor=SupervisorStatus(1, 1.0, "running"),
        gateway=GatewayStatus(url=None, state="disabled"),
        backend=BackendStatus("ollama", None, "ready", None),
        specialists=[replace(READY, notice="600 MiB of memory: it is replaced as soon as it is idle")],
    )
    assert advice(report) == ["apollo: 600 MiB of memory: it is replaced as soon as it is idle"]


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
