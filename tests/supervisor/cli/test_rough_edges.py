"""What a careless user met once: each has an answer now."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from lookalikes.ollama import Script
from team import ROOT, ModelServer, Team, wait_until


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with Team.start(tmp_path_factory.mktemp("team"), roster=["apollo", "athena"]) as started:
        yield started


def shell(team: Team, line: str) -> subprocess.CompletedProcess[str]:
    """A line of bash with `chorus` in it, in this team's surroundings."""
    chorus = f"{sys.executable} -P -m supervisor.cli"
    return subprocess.run(
        ["bash", "-c", line.replace("chorus", chorus)],
        cwd=ROOT,
        env=team.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_full_disk_behind_standard_output_is_no_traceback(team: Team) -> None:
    done = shell(team, "chorus status > /dev/full")
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_is_no_traceback(team: Team, closed: str) -> None:
    done = shell(team, f"chorus ask apollo hello {closed}")
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


def test_nothing_is_deleted_when_nobody_can_be_asked(team: Team) -> None:
    assert team.run("ask", "apollo", "remember this").returncode == 0
    refused = team.run("history", "rm", "--all")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert "remember this" in team.run("history").stdout


def test_a_misspelt_command_is_answered_with_the_nearest(team: Team) -> None:
    done = team.run("stauts")
    assert done.returncode == 2
    assert "did you mean status?" in done.stderr


def test_a_question_is_not_put_to_a_stranger_on_a_port_of_ours(tmp_path: Path) -> None:
    prepared = Team.prepare(tmp_path, roster=["apollo", "athena"])
    with ModelServer() as stranger:
        port = int(stranger.url.rsplit(":", 1)[1])
        config = prepared.home / ".config/chorus/config.toml"
        config.write_text(f"[specialists.apollo]\nport = {port}\n")
        try:
            assert prepared.run("up", "--wait-timeout", "1").returncode == 124
            refused = prepared.run("ask", "apollo", "secret")
            assert refused.returncode == 3
            assert f"port {port} is held by" in refused.stderr
        finally:
            prepared.run("down")


def test_a_mistake_in_the_configuration_does_not_keep_the_team_up(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=["apollo"]) as team:
        (team.home / ".config/chorus/config.toml").write_text("nonsense = 1\n")
        assert team.run("up").returncode == 2
        seen = team.run("status")
        assert seen.returncode == 0
        assert "nonsense" in seen.stderr
        assert team.run("down").returncode == 0
        assert "stopped" in team.run("status").stdout


def test_down_says_for_whom_it_waits(tmp_path: Path) -> None:
    with ModelServer() as server, Team.start(tmp_path, roster=["apollo", "athena"], env=server.env) as team:
        server.use(Script(ending="stall", after=1))
        asking = threading.Thread(target=team.run, args=("ask", "apollo", "hello"))
        asking.start()
        server.wait_asked()
        said = team.run("down", "--grace", "3")
        asking.join()
    assert said.returncode == 0
    assert "waiting for apollo: what is under way is finished first  do: chorus down --grace 0\n" in said.stderr
    assert said.stderr.index("stopped athena") < said.stderr.index("waiting for") < said.stderr.index("stopped apollo")


def test_up_while_the_team_goes_down_waits_and_starts_it_again(tmp_path: Path) -> None:
    with ModelServer() as server, Team.start(tmp_path, roster=["apollo"], env=server.env) as team:
        server.use(Script(ending="stall", after=1))  # an answer that keeps `down` waiting for its grace
        with team.popen("ask", "apollo", "hello") as asking:
            server.wait_asked()
            with team.popen("down", "--grace", "60") as going:
                wait_until(lambda: team.status()["supervisor"]["state"] == "stopping", 10, "it does not go down")
                with team.popen("up") as again:
                    assert again.stderr is not None
                    assert b"waiting for the team to go down" in again.stderr.readline()
                    asking.kill()
                    again.communicate(timeout=60)
                going.communicate(timeout=60)
        assert again.returncode == 0
        assert team.status()["specialists"][0]["state"] == "ready"
