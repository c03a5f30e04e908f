"""The gateway is kept as a specialist is, and is none: whoever dies, it is there, and it is nobody's trouble but its own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

import anyio
import psutil
import pytest
from keeping import all_ready, control, fork_server_of, gone, pids, report, until
from surviving import WITHIN, Callers, kill_supervisor, new_fork_server, up
from team import Team, wait_until

from protocol.control import Drain, GatewayStatus, Reload, Restart, Start, StatusReport, Stop
from supervisor.fleet.calls import title

ROSTER = ["apollo", "athena"]
HANGS_SOON = "[supervision]\nhealth_period = 0.2\nhung_after = 1.0\n"
ON = {"CHORUS_GATEWAY": "true"}


def started(tmp_path: Path, config: str = "", env: Mapping[str, str] | None = None) -> Team:
    return Team.start(tmp_path, config, ROSTER, ON | dict(env or {}))


def health(team: Team, host: str = "127.0.0.1") -> dict[str, object]:
    """What the gateway says of itself, to anybody who asks over HTTP."""
    connection = http.client.HTTPConnection(host, team.gateway_port, timeout=10)
    connection.request("GET", "/health")
    answer = connection.getresponse()
    assert answer.status == 200
    told: dict[str, object] = json.loads(answer.read())
    connection.close()
    return told


def is_ready(seen: StatusReport) -> bool:
    return seen.gateway.state == "ready" and all_ready(seen)


async def another(team: Team, old: int | None) -> GatewayStatus:
    """The gateway, as soon as it is ready and another process."""
    return (await until(team, lambda seen: is_ready(seen) and seen.gateway.pid != old)).gateway


def test_it_is_in_the_status_beside_the_specialists_and_not_among_them(tmp_path: Path) -> None:
    with started(tmp_path) as team:
        status = team.status()
        gateway = status["gateway"]
        assert gateway["url"] == f"http://127.0.0.1:{team.gateway_port}"
        assert (gateway["state"], gateway["wanted"], gateway["restarts"]) == ("ready", "up", 0)
        assert [one["name"] for one in status["specialists"]] == ROSTER
        for host in ("127.0.0.1", "::1"):
            told = health(team, host)
            assert (told["ai_id"], told["pid"]) == ("gateway", gateway["pid"])
        assert " ".join(psutil.Process(gateway["pid"]).cmdline()).strip() == title("gateway", team.gateway_port)
        assert status["backend"]["kind"] == "builtin", "what it answers with is not the team's"


def test_people_are_told_of_it_below_the_table(tmp_path: Path) -> None:
    with started(tmp_path) as team:
        url = f"http://127.0.0.1:{team.gateway_port}"
        pid = team.status()["gateway"]["pid"]
        *table, last = team.run("status").stdout.splitlines()
        assert last.split()[:5] == ["gateway", "ready", url, "pid", str(pid)]
        assert [line.split()[0] for line in table] == ["NAME", *ROSTER]
        assert "gateway" not in team.run("status", "apollo").stdout
        assert url in team.run("status", "gateway").stdout
        assert "apollo" not in team.run("status", "gateway").stdout
        assert team.run("status", "--check").returncode == 0
        assert f"the gateway is up: {url}" in team.run("up").stderr
        assert f"gateway answers on port {team.gateway_port} in " in team.run("doctor").stdout


async def test_nobody_is_refused_while_it_is_killed_and_no_specialist_notices(tmp_path: Path) -> None:
    with started(tmp_path) as team:
        before = await report(team)
        old = before.gateway.pid
        assert old is not None
        with Callers([team.gateway_port]) as callers:
            os.kill(old, signal.SIGKILL)
            seen = await another(team, old)
        assert callers.refused == []
        assert callers.made > 0
        assert seen.restarts == 1
        assert seen.last_exit is not None
        assert seen.last_exit.signal == "SIGKILL"
        assert pids(await report(team)) == pids(before)


async def test_it_lives_on_when_the_supervisor_dies_and_when_the_fork_server_does(tmp_path: Path) -> None:
    with started(tmp_path) as team:
        pid = (await report(team)).gateway.pid
        with Callers([team.gateway_port]) as callers:
            await kill_supervisor(team)
            assert (await anyio.to_thread.run_sync(health, team))["pid"] == pid
            await up(team)
            assert (await until(team, is_ready)).gateway.pid == pid
            server = fork_server_of(team)
            server.kill()
            await new_fork_server(team, server.pid)
            seen = (await until(team, is_ready)).gateway
            assert (seen.pid, seen.restarts) == (pid, 0)
            # And whoever was taken on is still kept.
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await another(team, pid)
        assert callers.refused == []


async def test_one_that_does_not_answer_writes_its_stacks_and_is_replaced(tmp_path: Path) -> None:
    with started(tmp_path, HANGS_SOON) as team:
        pid = (await report(team)).gateway.pid
        assert pid is not None
        with Callers([team.gateway_port]) as callers:
            os.kill(pid, signal.SIGSTOP)
            seen = await another(team, pid)
        assert callers.refused == []
        assert seen.last_exit is not None
        assert seen.last_exit.cause.startswith("hung: no answer for")
        assert "gateway/process.py" in (team.home / ".local/state/chorus/logs/gateway.out").read_text()


async def test_a_crash_loop_is_its_own(tmp_path: Path) -> None:
    with started(tmp_path, "[supervision]\nintensity = 1\n") as team:
        before = pids(await report(team))
        for _ in range(2):
            seen = await until(team, lambda seen: seen.gateway.pid is not None)
            os.kill(seen.gateway.pid or 0, signal.SIGKILL)
            await until(team, lambda seen, old=seen.gateway.pid: seen.gateway.pid != old)  # type: ignore[misc]
        seen = await until(team, lambda seen: seen.gateway.state == "failed")
        assert "ended too often" in (seen.gateway.last_error or "")
        with socket.create_connection(("127.0.0.1", team.gateway_port), 10) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.makefile("rb").readline().startswith(b"HTTP/1.1 503 ")
        assert pids(await report(team)) == before
        assert team.run("status", "--check").returncode == 1
        assert team.run("start", "gateway").returncode == 0
        assert (await report(team)).gateway.state == "ready"


def test_a_taken_port_is_named_and_keeps_nobody_else_from_being_up(tmp_path: Path) -> None:
    team = Team.prepare(tmp_path, "", ROSTER, ON)
    with socket.create_server(("127.0.0.1", team.gateway_port)), team:
        done = team.run("up")
        team.is_up = True
        assert done.returncode == 6
        assert "2 of 2 specialists are up" in done.stderr
        held = f"port {team.gateway_port} is held by pid {os.getpid()}"
        assert f"the gateway is not up: {held}" in done.stderr
        gateway = team.status()["gateway"]
        assert gateway["state"] == "backing_off"
        assert gateway["last_error"].startswith(held)
        assert gateway["remedy"] == f"kill {os.getpid()}, or set gateway.port"
        doctor = team.run("doctor")
        assert f"{held} (" in doctor.stdout
        assert "gateway needs it" in doctor.stdout


def test_it_starts_by_itself_when_its_port_is_free(tmp_path: Path) -> None:
    team = Team.prepare(tmp_path, "", ROSTER, ON)
    with team:
        with socket.create_server(("127.0.0.1", team.gateway_port)):
            team.run("up")
            team.is_up = True
        wait_until(lambda: team.status()["gateway"]["state"] == "ready", 10, "it did not start")
        assert health(team)["ai_id"] == "gateway"


def test_a_team_without_a_gateway_has_no_process_of_it_and_no_port(tmp_path: Path) -> None:
    with Team.start(tmp_path, "[gateway]\nenabled = false\n", ROSTER, {"CHORUS_GATEWAY": ""}) as team:
        gateway = team.status()["gateway"]
        assert (gateway["url"], gateway["state"], gateway["pid"]) == (None, "disabled", None)
        assert "gateway" not in team.run("status").stdout
        assert team.run("status", "--check").returncode == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", team.gateway_port), 5)
        refused = team.run("restart", "gateway")
        assert refused.returncode == 1
        assert "gateway.enabled is false" in refused.stderr


async def test_it_is_meant_only_where_it_is_named(tmp_path: Path) -> None:
    with started(tmp_path) as team:
        pid = (await report(team)).gateway.pid
        async with control(team) as operator:
            for asked in (Restart(), Restart(names=["all"]), Restart(names=["*"])):
                assert {one.name for one in (await operator.call(asked)).changed} == set(ROSTER)
            assert (await report(team)).gateway.pid == pid
            stopped = await operator.call(Stop(names=["gateway"]))
            assert [one.name for one in stopped.changed] == ["gateway"]
            seen = await report(team)
            assert (seen.gateway.state, seen.gateway.wanted, seen.gateway.pid) == ("stopped", "down", None)
            assert all_ready(seen)
            assert (await operator.call(Start(names=["Gateway"]))).ok
            assert (await operator.call(Drain(names=["gateway"]))).ok
            assert (await anyio.to_thread.run_sync(health, team))["status"] == "draining"
            assert (await operator.call(Start(names=["gateway"]))).ok
        assert (await anyio.to_thread.run_sync(health, team))["status"] == "healthy"


async def test_a_restart_refuses_nobody(tmp_path: Path) -> None:
    with started(tmp_path) as team:
        old = (await report(team)).gateway.pid
        with Callers([team.gateway_port]) as callers:
            async with control(team) as operator:
                for _ in range(3):
                    done = await operator.call(Restart(names=["gateway"]))
                    assert done.ok
                    await gone(old or 0)
                    assert done.changed[0].old_pid == old
                    old = done.changed[0].new_pid
        assert callers.refused == []


async def test_a_reload_restarts_it_only_for_what_it_is_told(tmp_path: Path) -> None:
    with started(tmp_path) as team:
        config = team.home / ".config/chorus/config.toml"
        before = await report(team)
        async with control(team) as operator:
            config.write_text("[specialists.apollo]\npersona = 'Another.'\n[supervision]\ngrace = 3.0\n")
            assert (await operator.call(Reload())).ok
            assert (await report(team)).gateway.pid == before.gateway.pid
            config.write_text("[gateway]\nallowed_origins = ['https://example.org']\n[supervision]\ngrace = 3.0\n")
            planned = await operator.call(Reload(dry_run=True))
            assert planned.plan is not None
            assert planned.plan.gateway is not None
            assert (planned.plan.gateway.action, planned.plan.gateway.why) == ("restart", ["gateway.allowed_origins"])
            done = await operator.call(Reload())
            assert {one.name for one in done.changed} == {"apollo", "gateway"}
        assert (await report(team)).gateway.pid != before.gateway.pid


async def test_a_port_more_opens_while_the_first_one_refuses_nobody(tmp_path: Path) -> None:
    with started(tmp_path) as team:
        config = team.home / ".config/chorus/config.toml"
        more = team.gateway_port - 1
        with Callers([team.gateway_port]) as callers:
            async with control(team) as operator:
                config.write_text(f"[gateway]\nalso_ports = [{more}]\n")
                assert (await operator.call(Reload())).ok
                socket.create_connection(("127.0.0.1", more), 5).close()
                server = fork_server_of(team)
            server.kill()
            await new_fork_server(team, server.pid)
            socket.create_connection(("::1", more), 5).close()
            config.write_text("")
            async with control(team) as operator:
                assert (await operator.call(Reload())).ok
        assert callers.refused == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", more), 5)


async def test_it_comes_and_goes_with_the_configuration(tmp_path: Path) -> None:
    with Team.start(tmp_path, "[gateway]\nenabled = false\n", ROSTER, {"CHORUS_GATEWAY": ""}) as team:
        config = team.home / ".config/chorus/config.toml"
        async with control(team) as operator:
            config.write_text("")
            done = await operator.call(Reload())
            assert done.ok
            assert [one.name for one in done.changed] == ["gateway"]
            pid = (await report(team)).gateway.pid
            assert (await anyio.to_thread.run_sync(health, team))["pid"] == pid
            config.write_text("[gateway]\nenabled = false\n")
            assert (await operator.call(Reload())).ok
        assert (await until(team, lambda seen: seen.gateway.state == "disabled", WITHIN)).gateway.pid is None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", team.gateway_port), 5)


def test_it_has_logs_and_events_of_its_own_and_goes_down_with_the_team(tmp_path: Path) -> None:
    with started(tmp_path) as team:
        pid = team.status()["gateway"]["pid"]
        assert f"listening at http://127.0.0.1:{team.gateway_port}" in team.run("logs", "gateway").stdout
        events = [json.loads(line) for line in team.run("events", "gateway", "--json").stdout.splitlines()]
        assert [one["to"] for one in events] == ["starting", "ready"]
        down = team.run("down")
        team.is_up = False
        assert "stopped gateway" in down.stderr
        assert "the team is down, 2 specialists stopped" in down.stderr
        assert not psutil.pid_exists(pid)
        assert "stopped in good order" in team.run("logs", "gateway").stdout
