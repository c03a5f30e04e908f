"""Whoever dies, whenever: the specialists live on, nobody who connects is refused, and nothing runs twice."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import psutil
import pytest
from keeping import (
    all_ready,
    ask_health,
    control,
    control_path,
    fork_server_of,
    gone,
    one,
    pids,
    report,
    until,
    wait_gone,
)
from surviving import WITHIN, Callers, fork_servers, kill_supervisor, new_fork_server, supervisor_of, up
from team import Team, command, wait_until

from protocol.client import connect, connect_control
from protocol.control import Restart, Start, StatusReport, Stop, SupervisorStatus
from protocol.errors import Unavailable
from protocol.messages import Chat, StreamChunk, StreamEnd
from supervisor.fleet.calls import title

ROSTER = ["apollo", "athena"]
SLOW = "[backend]\nkind = 'builtin'\npace = 20.0\n"
LONG = "one two three four five " * 10
KILLING = Path(__file__).resolve().parents[1] / "killing"
MOST_LINES, LINES_APART = 100, 4  # of the supervisor, from a death to its making good: 25 places


def alive(team: Team, name: str) -> list[int]:
    """The processes that bear a specialist's title, zombies aside."""
    wanted, found = title(name, team.port(name)), []
    for process in psutil.process_iter():
        try:
            if " ".join(process.cmdline()).strip() == wanted and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


async def test_the_death_of_the_fork_server_touches_no_specialist_and_no_stream(tmp_path: Path) -> None:
    with Team.start(tmp_path, config=SLOW, roster=ROSTER) as team:
        before = pids(await report(team))
        async with connect("127.0.0.1", team.port("apollo")) as connection:
            replies = connection.ask(Chat(content=LONG, stream=True))
            while not isinstance(await anext(replies), StreamChunk):
                pass
            server = fork_server_of(team)
            server.kill()
            with anyio.fail_after(WITHIN):
                last = [reply async for reply in replies][-1]
        assert isinstance(last, StreamEnd)
        await new_fork_server(team, server.pid)
        seen = await until(team, all_ready)
        assert pids(seen) == before
        assert all(entry.restarts == 0 for entry in seen.specialists)


async def test_who_was_taken_on_is_kept_like_the_others(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        before = pids(await report(team))
        server = fork_server_of(team)
        server.kill()
        await new_fork_server(team, server.pid)
        with Callers([team.port(name) for name in ROSTER]) as callers:
            team.signal("apollo", signal.SIGKILL)
            seen = await until(team, lambda seen: all_ready(seen) and one(seen, "apollo").pid != before["apollo"])
            async with control(team) as operator, anyio.create_task_group():
                restarted = await operator.call(Restart(names=["athena"]))
        assert callers.refused == []
        assert callers.made > 10
        last_exit = one(seen, "apollo").last_exit
        assert last_exit is not None
        assert last_exit.cause == "killed by SIGKILL"
        assert restarted.ok
        assert restarted.changed[0].old_pid == before["athena"]
        async with control(team) as operator:
            assert (await operator.call(Stop(names=["apollo"]))).ok
        assert alive(team, "apollo") == []
        assert len(alive(team, "athena")) == 1


async def test_who_was_taken_on_goes_down_with_the_team(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        server = fork_server_of(team)
        server.kill()
        await new_fork_server(team, server.pid)
        ours = team.processes()
        assert len(ours) >= 4  # and perhaps the one that is forked ahead
        assert team.run("down").returncode == 0
        for process in ours:
            wait_gone(process.pid)


async def test_when_supervisor_and_fork_server_die_the_next_ones_go_on_with_the_same_processes(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        before = pids(await report(team))
        server = fork_server_of(team)
        with Callers([team.port(name) for name in ROSTER]) as callers:
            await kill_supervisor(team)
            server.kill()
            await gone(server.pid)
            await up(team)
            seen = await until(team, all_ready)
        assert callers.refused == []
        assert pids(seen) == before
        team.signal("apollo", signal.SIGKILL)
        seen = await until(team, lambda seen: all_ready(seen) and one(seen, "apollo").pid != before["apollo"])
        assert one(seen, "athena").pid == before["athena"]
        assert len(alive(team, "apollo")) == 1


@pytest.mark.parametrize("victims", ["supervisor", "fork server", "both"])
async def test_who_is_kept_down_stays_so_whoever_dies_until_it_is_started(tmp_path: Path, victims: str) -> None:
    with Team.start(tmp_path, config='[supervision]\nrestart = "never"\n', roster=ROSTER) as team:
        before = await report(team)
        os.kill(pids(before)["apollo"] or 0, signal.SIGSEGV)
        died = one(await until(team, lambda seen: one(seen, "apollo").state == "failed"), "apollo")
        [forks] = fork_servers(team)
        if victims != "fork server":
            await kill_supervisor(team)
        if victims != "supervisor":
            forks.kill()
            forks.wait(10)
        if victims == "fork server":
            await new_fork_server(team, forks.pid, ["athena"])
        else:
            await anyio.to_thread.run_sync(team.run, "up")
        seen = await report(team)
        now = one(seen, "apollo")
        assert (now.state, now.pid, now.next_due) == ("failed", None, None)
        assert (now.last_error, now.remedy, now.restarts) == ("killed by SIGSEGV", "chorus start apollo", 0)
        assert now.last_exit == died.last_exit
        assert pids(seen)["athena"] == pids(before)["athena"]
        async with connect("127.0.0.1", team.port("apollo")) as connection:
            with pytest.raises(Unavailable, match="apollo is not running: killed by SIGSEGV; chorus start apollo"):
                await connection.call(Chat(content="hello"))
        async with control(team) as operator:
            assert (await operator.call(Start(names=["apollo"]))).ok
        assert one(await report(team), "apollo").state == "ready"


async def test_a_death_that_nobody_saw_keeps_down_whom_it_would_have_kept_down(tmp_path: Path) -> None:
    config = '[specialists.apollo]\nrestart = "never"\n'
    with Team.start(tmp_path, config=config, roster=ROSTER) as team:
        before = pids(await report(team))
        await kill_supervisor(team)
        for name in ROSTER:
            os.kill(before[name] or 0, signal.SIGKILL)
            await gone(before[name] or 0)
        await anyio.to_thread.run_sync(team.run, "up")
        seen = await report(team)
    apollo, athena = one(seen, "apollo"), one(seen, "athena")
    assert (apollo.state, apollo.pid, apollo.restarts) == ("failed", None, 0)
    assert apollo.last_error == "killed by SIGKILL while no supervisor was running"
    assert (athena.state, athena.restarts) == ("ready", 1)


async def test_who_was_to_be_told_that_the_team_is_up_may_be_gone(tmp_path: Path) -> None:
    team = Team.prepare(tmp_path, roster=ROSTER)
    read, write = os.pipe()
    os.close(read)
    call = command("up", "--foreground", "--ready-fd", str(write))
    how = {"env": team.env, "cwd": team.home, "pass_fds": [write], "stderr": subprocess.DEVNULL}
    with subprocess.Popen(call, **how) as supervisor, team:
        os.close(write)
        await anyio.to_thread.run_sync(lambda: wait_until(lambda: bool(alive(team, "apollo")), WITHIN, "nobody is up"))
        team.is_up = True
        assert (await anyio.to_thread.run_sync(team.run, "up")).returncode == 0
        seen = await until(team, all_ready)
        assert seen.supervisor.pid == supervisor.pid


async def test_a_fork_server_that_nobody_can_reach_any_more_holds_no_port(tmp_path: Path) -> None:
    """As at the end of a login session: the folder of the sockets is removed, whoever has them open lives on."""
    with Team.start(tmp_path, roster=ROSTER) as team:
        before = pids(await report(team))
        server = fork_server_of(team)
        shutil.rmtree(team.env["XDG_RUNTIME_DIR"])
        await kill_supervisor(team)
        await up(team)
        assert pids(await until(team, all_ready)) == before
        await gone(server.pid)
        async with control(team) as operator:
            assert (await operator.call(Stop(names=["apollo"]))).ok
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", team.port("apollo")), 5)


async def test_a_state_folder_that_is_removed_makes_no_second_team(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        before, server = pids(await report(team)), fork_server_of(team)
        socket_path = control_path(team)
        shutil.rmtree(team.home / ".local/state/chorus")
        os.kill(before["apollo"] or 0, signal.SIGKILL)
        second = await anyio.to_thread.run_sync(team.run, "up")
        assert "already running" in second.stderr
        async with connect_control(socket_path) as operator:
            assert (await operator.call(Start(names=["apollo"]))).ok
        assert len(alive(team, "apollo")) == 1
        assert alive(team, "athena") == [before["athena"]]
        assert server.is_running()


async def test_who_is_not_in_the_team_any_more_leaves_no_port_open(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        server, apollo = fork_server_of(team), team.pid("apollo")
        await kill_supervisor(team)
        server.kill()
        await gone(server.pid)
        team.env["CHORUS_ROSTER"] = "athena"
        await up(team)
        await gone(apollo)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", team.port("apollo")), 5)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="takes root and setpriv to be refused")
async def test_where_the_kernel_refuses_the_sockets_a_specialist_is_restarted_and_never_doubled(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    # PR_SET_DUMPABLE 0: without the capability not even a process of the same user may look inside (ptrace(2)).
    (closed / "sitecustomize.py").write_text("import ctypes\nctypes.CDLL(None).prctl(4, 0)\n")
    team = Team.prepare(tmp_path, roster=ROSTER)
    team.env["PYTHONPATH"] = f"{closed}:{team.env['PYTHONPATH']}"

    def start() -> None:
        without = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", "--"]
        done = subprocess.run([*without, *command("up")], env=team.env, cwd=team.home, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    with team:
        await anyio.to_thread.run_sync(start)
        team.is_up = True
        before = pids(await report(team))
        server = fork_server_of(team)
        await kill_supervisor(team)
        server.kill()
        await gone(server.pid)
        await anyio.to_thread.run_sync(start)
        seen = await until(team, all_ready)
        assert not set(pids(seen).values()) & set(before.values())
        for name in ROSTER:
            assert alive(team, name) == [one(seen, name).pid]
            assert "held by" not in (team.home / f".local/state/chorus/logs/{name}.log").read_text()


async def test_a_fork_server_that_is_stopped_is_replaced(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        before = pids(await report(team))
        server = fork_server_of(team)
        server.send_signal(signal.SIGSTOP)
        with Callers([team.port(name) for name in ROSTER]) as callers:
            await gone(server.pid, within=WITHIN)
            await new_fork_server(team, server.pid)
            async with control(team) as operator:
                restarted = await operator.call(Restart(names=["apollo"]))
        assert callers.refused == []
        assert restarted.changed[0].old_pid == before["apollo"]
        assert one(await report(team), "athena").pid == before["athena"]


async def test_while_no_fork_server_can_be_started_the_status_says_so(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        before = pids(await report(team))
        place = control_path(team).with_suffix(".fork")
        place.unlink()
        place.mkdir()  # nobody can listen here
        [forks] = fork_servers(team)
        forks.kill()
        seen = await until_supervisor(team, lambda house: "Is a directory" in (house.notice or ""))
        assert all_ready(seen)
        assert pids(seen) == before
        told = await anyio.to_thread.run_sync(team.run, "status", "--check")
        assert told.returncode == 1
        assert (
            "whoever ends is not started again until there is one: it cannot be started: Is a directory" in told.stderr
        )
        assert "do: chorus logs supervisor" in told.stderr
        place.rmdir()
        await until_supervisor(team, lambda house: house.notice is None)
        assert (await anyio.to_thread.run_sync(team.run, "status", "--check")).returncode == 0
        assert pids(await report(team)) == before


async def until_supervisor(team: Team, holds: Callable[[SupervisorStatus], bool]) -> StatusReport:
    """The state of the team, as soon as something holds of its supervisor."""
    with anyio.fail_after(WITHIN):
        while not holds((seen := await report(team)).supervisor):
            await anyio.lowlevel.checkpoint()
    return seen


async def test_a_death_together_with_the_fork_server_is_told_with_its_cause(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        before = pids(await report(team))
        server = fork_server_of(team)
        with Callers([team.port(name) for name in ROSTER]) as callers:
            server.send_signal(signal.SIGSTOP)
            team.signal("apollo", signal.SIGKILL)
            server.kill()
            seen = await until(team, lambda seen: all_ready(seen) and one(seen, "apollo").pid != before["apollo"])
        assert callers.refused == []
        apollo = one(seen, "apollo")
        assert apollo.restarts == 1
        assert apollo.last_exit is not None
        assert apollo.last_exit.cause.startswith("killed by SIGKILL")
        assert one(seen, "athena").pid == before["athena"]


@contextmanager
def team_that_dies(tmp_path: Path, who: str) -> Iterator[tuple[Team, Path]]:
    """A team one of whose processes can be killed at any line; the file says at which."""
    at = tmp_path / "at"
    team = Team.prepare(tmp_path, "[supervision]\nintensity = 1000000\n", roster=ROSTER)
    team.env |= {"KILL_IN": who, "KILL_AT": str(at), "PYTHONPATH": f"{KILLING}:{team.env['PYTHONPATH']}"}
    with team:
        started = team.run("up")
        team.is_up = True
        assert started.returncode == 0, started.stderr
        yield team, at


def order_death(at: Path, number: int) -> None:
    """The file is there with its number or not at all: it is read as soon as it exists."""
    draft = at.with_suffix(".draft")
    draft.write_text(str(number))
    draft.replace(at)


@pytest.mark.long
async def test_the_fork_server_may_die_at_any_line(tmp_path: Path) -> None:
    """While it learns of a specialist's death and starts the next one, until there is no line left. Every third line, or
    all of them where EVERY_LINE is set.
    """
    with team_that_dies(tmp_path, "forkserver") as (team, at):
        athena = team.pid("athena")
        with Callers([team.port(name) for name in ROSTER]) as callers:
            for number in range(1, 1000, 1 if "EVERY_LINE" in os.environ else 3):
                [server] = fork_servers(team)
                before = one(await report(team), "apollo")
                order_death(at, number)
                os.kill(before.pid or 0, signal.SIGKILL)
                seen = await until(
                    team, lambda seen, old=before.pid: all_ready(seen) and one(seen, "apollo").pid not in (None, old)
                )
                apollo = one(seen, "apollo")
                where = f"killed at line {number}"
                assert alive(team, "apollo") == [apollo.pid], where
                assert one(seen, "athena").pid == athena, where
                assert apollo.restarts > before.restarts, where
                assert (await ask_health(team.port("apollo"))).pid == apollo.pid, where
                assert callers.refused == [], where
                if at.exists():
                    break
                await new_fork_server(team, server.pid)
        assert number > 50, "so few lines cannot have been all"


@pytest.mark.long
async def test_the_supervisor_may_die_at_any_line(tmp_path: Path) -> None:
    """While it hears of a specialist's death and has the next one started; the next supervisor makes good what is missing."""
    with team_that_dies(tmp_path, "supervisor") as (team, at):
        athena = team.pid("athena")
        died = 0
        with Callers([team.port(name) for name in ROSTER]) as callers:
            for number in range(1, MOST_LINES, LINES_APART):
                before = one(await report(team), "apollo")
                supervisor = supervisor_of(team)
                order_death(at, number)
                os.kill(before.pid or 0, signal.SIGKILL)
                await gone(supervisor, WITHIN)
                died += 1
                await up(team)
                seen = await until(
                    team, lambda seen, old=before.pid: all_ready(seen) and one(seen, "apollo").pid not in (None, old)
                )
                apollo = one(seen, "apollo")
                where = f"killed at line {number}"
                assert alive(team, "apollo") == [apollo.pid], where
                assert one(seen, "athena").pid == athena, where
                assert apollo.restarts > before.restarts, where
                assert (await ask_health(team.port("apollo"))).pid == apollo.pid, where
                assert callers.refused == [], where
        assert died > 10
