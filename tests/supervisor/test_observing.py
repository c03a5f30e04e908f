"""systemd as the restarter, for real: its user manager keeps the specialists, and the supervisor observes and delegates."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from delegating import Client, Delegated, delegated, is_refused
from surviving import Callers
from team import Team, wait_until

from supervisor import units
from supervisor.errors import NoServiceManager
from supervisor.fleet.owner import describe
from supervisor.fleet.systemctl import own_manager

# A specialist in another language, as far as anybody can see: the wire and LISTEN_FDS are all it knows.
PROGRAM = """
import json, os, socket, threading
def serve(connection):
    for line in connection.makefile("rb"):
        asked = json.loads(line)
        told = {"type": "health_response", "request_id": asked.get("request_id"), "ai_id": os.environ["CHORUS_AI_ID"],
            "status": "healthy", "component": os.environ["CHORUS_NAME"], "model": "none", "pid": os.getpid(), "instance": "1",
            "clients": 1, "in_flight": 0, "queued": 0, "uptime": 1.0, "rss_bytes": 1, "loop_lag_ms": 0.0,
            "backend": {"kind": "builtin", "url": None, "state": "ready", "error": None}}
        connection.sendall(json.dumps(told).encode() + b"\\n")
def accept(listener):
    while True:
        threading.Thread(target=serve, args=[listener.accept()[0]]).start()
for number in range(int(os.environ["LISTEN_FDS"])):
    threading.Thread(target=accept, args=[socket.socket(fileno=3 + number)]).start()
"""


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Delegated]:
    """Two specialists of systemd's, and a supervisor that observes them: all are up."""
    with delegated(tmp_path, ["apollo", "athena"]) as one:
        one.up()
        yield one


def test_the_supervisor_forks_nothing_and_says_who_restarts(team: Delegated) -> None:
    status = team.run("status")
    assert team.manager.pids(units.SERVICE) == {team.supervisor}
    assert team.status()["supervisor"]["restarter"] == "systemd"
    assert "restarter: systemd" in status.stderr
    assert "systemd restarts the specialists" in team.run("doctor").stdout
    for name in ("apollo", "athena"):
        assert {team.pid(name)} == team.pids_of(name) == {team.manager.main_pid(f"specialist@{name}.service")}


def test_a_killed_specialist_is_restarted_by_systemd_alone_and_nobody_is_refused(
    team: Delegated, capsys: pytest.CaptureFixture[str]
) -> None:
    old = team.pid("apollo")
    with Client(team.port("apollo")) as client:
        wait_until(lambda: client.answered > 10, 10, "nobody answers")
        os.kill(old, signal.SIGKILL)
        seen = team.until_one("apollo", lambda one: one["state"] == "ready" and one["pid"] != old)
        so_far = client.answered
        wait_until(lambda: client.answered > so_far + 10, 10, "nobody answers")
    with capsys.disabled():
        print(f"\nkilled under systemd: the slowest answer took {client.slowest * 1000:.0f} ms")
    assert client.refused == []
    assert seen["restarts"] == 1
    assert seen["last_exit"]["signal"] == "SIGKILL"
    assert seen["last_exit"]["cause"] == "killed by SIGKILL"
    assert team.pids_of("apollo") == {seen["pid"]}
    assert team.manager.pids(units.SERVICE) == {team.supervisor}
    assert "restarted by systemd after: killed by SIGKILL" in team.run("events").stdout


def test_a_hung_specialist_is_ended_by_systemds_watchdog(team: Delegated) -> None:
    old = team.pid("apollo")
    os.kill(old, signal.SIGSTOP)
    seen = team.until_one("apollo", lambda one: one["state"] == "ready" and one["pid"] != old)
    assert "watchdog" in seen["last_exit"]["cause"]
    assert seen["last_exit"]["signal"] == "SIGABRT"
    said = "\n".join(line["MESSAGE"] for line in team.manager.journal("specialist@apollo.service"))
    assert "Fatal Python error: Aborted" in said  # where it hung


def test_the_gateway_is_kept_by_systemd_too(tmp_path: Path) -> None:
    with delegated(tmp_path, ["apollo"], gateway=True) as team:
        team.up()

        def gateway() -> dict[str, Any]:
            return dict(team.status()["gateway"])

        def is_another(old: int | None) -> bool:
            seen = gateway()
            return bool(seen["state"] == "ready" and seen["pid"] != old)

        wait_until(lambda: is_another(None), 20, "the gateway is not up")
        old = gateway()["pid"]
        assert team.manager.pids("chorus-gateway.service") == {old}
        with Callers([team.gateway_port]) as callers:
            os.kill(old, signal.SIGKILL)
            wait_until(lambda: is_another(old), 20, "nobody restarted it")
            seen = gateway()
            assert (seen["restarts"], seen["last_exit"]["cause"]) == (1, "killed by SIGKILL")
            assert team.run("restart", "gateway").returncode == 0
            assert is_another(seen["pid"])
            seen = gateway()
            os.kill(seen["pid"], signal.SIGSTOP)
            wait_until(lambda: is_another(seen["pid"]), 20, "it hangs")
        assert callers.refused == []
        assert "watchdog" in gateway()["last_exit"]["cause"]
        assert team.status()["backend"]["kind"] == "builtin"
        assert team.run("stop", "gateway").returncode == 0
        assert is_refused(team.gateway_port)
        assert (gateway()["state"], team.specialist("apollo")["state"]) == ("stopped", "ready")
        assert team.run("start", "gateway").returncode == 0
        said = [line["MESSAGE"] for line in team.manager.journal("chorus-gateway.service")]
        assert any("listening at" in line for line in said)
        assert "stopped gateway" in team.run("down").stderr
        assert is_refused(team.gateway_port)


def test_stop_closes_the_port_and_start_opens_it(team: Delegated) -> None:
    stopped = team.run("stop", "apollo")
    assert stopped.returncode == 0, stopped.stderr
    assert is_refused(team.port("apollo"))
    assert team.manager.show("specialist@apollo.service", "ActiveState") == {"ActiveState": "inactive"}
    assert team.specialist("apollo")["state"] == "stopped"
    assert team.specialist("apollo")["last_exit"]["cause"] == "stopped as asked"
    assert team.specialist("athena")["state"] == "ready"

    started = team.run("start", "apollo")
    assert started.returncode == 0, started.stderr
    assert team.specialist("apollo")["state"] == "ready"
    assert team.pids_of("apollo") == {team.pid("apollo")}


def test_restart_goes_through_systemd_and_nobody_is_refused(team: Delegated) -> None:
    old = team.pid("apollo")
    with Client(team.port("apollo")) as client:
        for _ in range(12):  # more often than systemd allows anybody but an operator
            restarted = team.run("restart", "apollo")
            assert restarted.returncode == 0, restarted.stderr
    assert client.refused == []
    assert team.pid("apollo") == team.manager.main_pid("specialist@apollo.service") != old


def test_a_drained_specialist_stays_and_refuses_until_it_is_started(team: Delegated) -> None:
    old = team.pid("apollo")
    assert team.run("drain", "apollo").returncode == 0
    assert (team.specialist("apollo")["state"], team.pid("apollo")) == ("draining", old)
    assert "takes no new questions" in team.run("ask", "apollo", "hello").stderr
    assert team.run("start", "apollo").returncode == 0
    assert team.run("ask", "apollo", "hello").returncode == 0


def test_the_death_of_the_supervisor_changes_nothing_for_the_specialists(team: Delegated) -> None:
    before = {name: team.pid(name) for name in ("apollo", "athena")}
    died = team.supervisor
    with Client(team.port("apollo")) as client:
        os.kill(died, signal.SIGKILL)
        wait_until(lambda: team.supervisor not in (0, died), 10, "systemd did not start the supervisor again")
        team.until_ready()
    assert client.refused == []
    assert {name: team.pid(name) for name in before} == before
    assert {one["restarts"] for one in team.status()["specialists"]} == {0}


def test_who_was_stopped_stays_stopped_when_the_supervisor_dies(team: Delegated) -> None:
    assert team.run("stop", "apollo").returncode == 0
    died = team.supervisor
    os.kill(died, signal.SIGKILL)
    wait_until(lambda: team.supervisor not in (0, died), 10, "systemd did not start the supervisor again")
    team.until_one("athena", lambda one: one["state"] == "ready")
    assert team.specialist("apollo")["wanted"] == "down"
    assert is_refused(team.port("apollo"))


def test_what_happens_while_no_supervisor_is_there_is_known_to_the_next(team: Delegated) -> None:
    old = team.pid("apollo")
    died = team.supervisor
    os.kill(died, signal.SIGKILL)
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: team.supervisor not in (0, died), 10, "systemd did not start the supervisor again")
    team.until_ready()
    seen = team.specialist("apollo")
    assert seen["restarts"] == 1
    assert seen["last_exit"]["cause"] == "killed by SIGKILL while no supervisor was running"


def test_what_an_operator_asks_of_systemd_is_as_good_as_asked_of_us(team: Delegated) -> None:
    team.manager.systemctl("stop", "specialist@apollo.socket", "specialist@apollo.service")
    seen = team.until_one("apollo", lambda one: one["state"] == "stopped")
    assert seen["wanted"] == "down"
    team.manager.systemctl("start", "specialist@apollo.service")
    seen = team.until_one("apollo", lambda one: one["state"] == "ready")
    assert seen["wanted"] == "up"


def test_a_crash_loop_is_given_up_by_systemd_and_started_by_an_operator(team: Delegated) -> None:
    def kill_again() -> bool:
        pid = team.manager.main_pid("specialist@apollo.service")
        if pid:
            os.kill(pid, signal.SIGKILL)
        return team.manager.show("specialist@apollo.service", "ActiveState") == {"ActiveState": "failed"}

    wait_until(kill_again, 30, "systemd does not give up")
    seen = team.until_one("apollo", lambda one: one["state"] == "failed")
    assert "killed by SIGKILL; systemd has given up" in seen["last_error"]
    assert seen["remedy"].startswith("chorus start apollo")
    started = team.run("start", "apollo")
    assert started.returncode == 0, started.stderr
    assert team.run("ask", "apollo", "hello").returncode == 0


def test_the_end_of_the_supervisors_unit_leaves_the_specialists_to_systemd(team: Delegated) -> None:
    before = {name: team.pid(name) for name in ("apollo", "athena")}
    team.manager.systemctl("stop", units.SERVICE)
    assert {name: team.manager.main_pid(f"specialist@{name}.service") for name in before} == before
    team.manager.systemctl("start", units.SERVICE)
    team.until_ready()
    assert {name: team.pid(name) for name in before} == before


def test_down_takes_everybody_down_and_leaves_no_port_open(team: Delegated) -> None:
    down = team.run("down")
    assert down.returncode == 0, down.stderr
    assert all(is_refused(team.port(name)) for name in ("apollo", "athena"))
    assert all(team.pids_of(name) == set() for name in ("apollo", "athena"))
    wait_until(lambda: not team.manager.pids(units.SERVICE), 10, "the supervisor goes on")


def test_down_without_a_supervisor_says_whose_the_specialists_are(team: Delegated) -> None:
    team.manager.systemctl("stop", units.SERVICE)
    assert "the specialists are systemd's" in team.run("down").stderr
    assert "the specialists are systemd's" in team.run("status").stderr
    assert team.pids_of("apollo")


def test_a_program_of_another_language_is_systemds_too_and_its_hang_is_seen(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = f'["{sys.executable}", "{tmp_path}/program.py"]'
    config = f"[supervision]\nhealth_period = 0.2\nhung_after = 1\n[specialists.apollo]\ncommand = {command}\n"
    with delegated(tmp_path, ["apollo"], config=config) as team:
        team.up()
        old = team.pid("apollo")
        os.kill(old, signal.SIGSTOP)
        seen = team.until_one("apollo", lambda one: one["state"] == "ready" and one["pid"] != old)
    assert seen["last_exit"]["signal"] == "SIGKILL"
    assert seen["restarts"] == 1


def test_a_changed_configuration_restarts_through_systemd(tmp_path: Path) -> None:
    with delegated(tmp_path, ["apollo", "athena"]) as team:
        team.up()
        before = {name: team.pid(name) for name in ("apollo", "athena")}
        (team.home / ".config/chorus/config.toml").write_text('[specialists.apollo]\npersona = "You are brief."\n')
        reloaded = team.run("reload")
        assert reloaded.returncode == 0, reloaded.stderr
        assert team.pid("athena") == before["athena"]
        assert team.pid("apollo") == team.manager.main_pid("specialist@apollo.service") != before["apollo"]


def test_a_port_that_somebody_else_has_is_named(tmp_path: Path) -> None:
    with delegated(tmp_path, ["apollo", "athena"]) as team, socket.create_server(("127.0.0.1", team.port("apollo"))):
        team.manager.run("systemctl", "--user", "start", units.SERVICE)
        seen = team.until_one("apollo", lambda one: one["state"] == "failed")
        team.until_one("athena", lambda one: one["state"] == "ready")
    assert f"port {seen['port']} is held by pid {os.getpid()}" in seen["last_error"]


def test_a_port_of_systemds_comes_with_the_remedy_for_it(team: Delegated) -> None:
    """Who kills the process there finds the next one."""
    fact, remedy = describe(team.port("apollo"), "specialists.apollo.port")
    assert f"held by pid {team.pid('apollo')} (" in fact
    assert remedy.startswith("systemctl --user stop specialist@apollo.socket specialist@apollo.service, or ")


def test_without_units_it_says_how_to_have_them(tmp_path: Path) -> None:
    with delegated(tmp_path, ["apollo"]) as team:
        (team.manager.units / "specialist@.service").unlink()
        team.manager.systemctl("daemon-reload")
        team.manager.run("systemctl", "--user", "start", units.SERVICE)
        seen = team.until_one("apollo", lambda one: one["state"] == "failed")
    assert "Unit specialist@apollo.service not found" in seen["last_error"]
    assert seen["remedy"].startswith("chorus service install --restarter systemd")


def test_a_supervisor_that_is_no_unit_refuses_to_be_one(tmp_path: Path) -> None:
    team = Team.prepare(tmp_path, '[supervision]\nrestarter = "systemd"\n', ["apollo"])
    for name in ("MANAGERPID", "INVOCATION_ID"):
        team.env.pop(name, None)
    up: subprocess.CompletedProcess[str] = team.run("up")
    assert up.returncode == 1
    assert "this supervisor is no unit of systemd" in up.stderr
    assert "chorus service install" in up.stderr
    team.down()


def test_the_manager_is_the_one_whose_unit_we_are() -> None:
    assert own_manager({"MANAGERPID": "7", "INVOCATION_ID": "a"}) == "--user"
    assert own_manager({"INVOCATION_ID": "a"}) == "--system"
    with pytest.raises(NoServiceManager):
        own_manager({})
