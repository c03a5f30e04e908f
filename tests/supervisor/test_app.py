"""Whole teams of real processes, and what they go through."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from pathlib import Path

import anyio
import psutil
import pytest
from keeping import all_ready, ask_health, control, fork_server_of, forked_by, gone, one, pids, report, until, wait_gone
from team import Team, wait_until

from protocol.client import connect
from protocol.control import Progress, Restart, Shutdown, Start, Stop
from protocol.errors import Draining
from protocol.messages import Chat, StreamChunk, StreamEnd
from supervisor.fleet.calls import title

ROSTER = ["apollo", "athena"]
SLOW = "[backend]\nkind = 'builtin'\npace = 20.0\n"
LONG = "one two three four five " * 10


def leftovers(team: Team) -> list[int]:
    """Processes of this team's specialists, by their titles, zombies aside."""
    titles = {title(name, team.port(name)) for name in ROSTER}
    found = []
    for process in psutil.process_iter():
        try:
            if " ".join(process.cmdline()).strip() in titles and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


async def kill_supervisor(team: Team) -> None:
    supervisor = (await report(team)).supervisor.pid
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    await gone(supervisor)


async def up(team: Team) -> None:
    """`chorus up`, with this test's event loop going on."""
    done = await anyio.to_thread.run_sync(team.run, "up")
    assert done.returncode == 0, done.stderr


def log(team: Team, name: str) -> str:
    return (team.home / f".local/state/chorus/logs/{name}.log").read_text()


async def test_a_specialist_that_is_killed_comes_back_with_its_cause_in_the_status(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        before = pids(await report(team))
        team.signal("apollo", signal.SIGKILL)
        seen = await until(team, lambda seen: all_ready(seen) and one(seen, "apollo").pid != before["apollo"])
        apollo, athena = one(seen, "apollo"), one(seen, "athena")
        assert apollo.restarts == 1
        assert apollo.last_exit is not None
        assert apollo.last_exit.cause == "killed by SIGKILL"
        assert athena.pid == before["athena"]


async def test_the_death_of_the_supervisor_touches_no_specialist_and_no_stream(tmp_path: Path) -> None:
    with Team.start(tmp_path, config=SLOW, roster=ROSTER) as team:
        before = pids(await report(team))
        async with connect("127.0.0.1", team.port("apollo")) as connection:
            replies = connection.ask(Chat(content=LONG, stream=True))
            while not isinstance(await anext(replies), StreamChunk):
                pass
            await kill_supervisor(team)
            assert (await ask_health(team.port("athena"))).pid == before["athena"]
            await up(team)
            with anyio.fail_after(30):
                last = [reply async for reply in replies][-1]
        assert isinstance(last, StreamEnd)
        seen = await until(team, all_ready)
        assert pids(seen) == before
        assert all(entry.restarts == 0 for entry in seen.specialists)


async def test_an_end_in_the_supervisor_s_absence_is_reported_and_made_good(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        before = pids(await report(team))
        await kill_supervisor(team)
        victim = before["apollo"]
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        await gone(victim)
        await up(team)
        seen = await until(team, all_ready)
        apollo = one(seen, "apollo")
        assert apollo.pid != victim
        assert apollo.restarts == 1
        assert apollo.last_exit is not None
        assert apollo.last_exit.cause == "killed by SIGKILL while no supervisor was running"
        assert one(seen, "athena").pid == before["athena"]


async def test_what_was_stopped_stays_stopped_under_the_next_supervisor(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        assert team.run("stop", "apollo").returncode == 0
        await kill_supervisor(team)
        await up(team)
        seen = await until(team, lambda seen: one(seen, "athena").state == "ready")
        assert one(seen, "apollo").state == "stopped"
        assert one(seen, "apollo").restarts == 0


@pytest.mark.parametrize("with_fork_server", [True, False])
async def test_down_leaves_nothing_after_a_killed_supervisor_either(tmp_path: Path, with_fork_server: bool) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        server = fork_server_of(team)
        await kill_supervisor(team)
        if not with_fork_server:
            server.kill()
            await gone(server.pid)
        assert len(leftovers(team)) == 2
        assert team.run("down").returncode == 0
        assert leftovers(team) == []
        wait_gone(server.pid)
        assert team.run("status").returncode == 3


def test_down_leaves_no_process(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        ours = team.processes()
        assert len(ours) >= 4  # and perhaps the one that is forked ahead
        assert team.run("down").returncode == 0
        for process in ours:
            wait_gone(process.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_supervisor_is_an_orderly_down(tmp_path: Path, number: signal.Signals) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        ours = team.processes()
        ours[0].send_signal(number)
        for process in ours:
            wait_gone(process.pid)
        assert "stopped in good order" in log(team, "apollo")
        assert team.run("status").returncode == 3


async def test_down_with_a_short_grace_cuts_a_stream_and_keeps_its_partial_text(tmp_path: Path) -> None:
    with Team.start(tmp_path, config=SLOW, roster=ROSTER) as team:
        async with connect("127.0.0.1", team.port("apollo")) as connection:
            replies = connection.ask(Chat(content=LONG * 5, stream=True))
            while not isinstance(await anext(replies), StreamChunk):
                pass
            async with control(team) as operator, anyio.create_task_group() as group:
                group.start_soon(operator.call, Shutdown(grace=0.2))
                with pytest.raises(Draining) as raised, anyio.fail_after(8):
                    async for _reply in replies:
                        pass
        assert raised.value.partial


async def test_whoever_asked_for_the_end_hears_of_it(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        async with control(team) as operator:
            with anyio.fail_after(20):
                answers = [answer async for answer in operator.ask(Shutdown())]
        assert {answer.name for answer in answers if isinstance(answer, Progress)} == set(ROSTER)
        assert getattr(answers[-1], "ok", False)


def test_a_second_supervisor_on_the_same_state_is_refused(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        second = team.run("up", "--foreground")
        assert second.returncode == 1
        assert "already running" in second.stderr
        assert team.specialist("apollo")["state"] == "ready"


def test_two_teams_live_side_by_side(tmp_path: Path) -> None:
    with Team.start(tmp_path / "one", roster=ROSTER) as first, Team.start(tmp_path / "two", roster=ROSTER) as second:
        assert first.pid("apollo") != second.pid("apollo")
        first.down()
        assert second.run("ask", "apollo", "hello").returncode == 0


async def test_a_supervisor_that_was_suspended_does_not_kill_a_healthy_team(tmp_path: Path) -> None:
    quick = "[supervision]\nhealth_period = 0.1\nhung_after = 0.5\n"
    with Team.start(tmp_path, config=quick, roster=ROSTER) as team:
        seen = await report(team)
        supervisor = seen.supervisor.pid
        assert supervisor is not None
        for _ in range(3):  # it may be in the middle of a question, or between two
            os.kill(supervisor, signal.SIGSTOP)
            with anyio.move_on_after(2.0):  # much longer than hung_after
                await anyio.Event().wait()
            os.kill(supervisor, signal.SIGCONT)
            for name in ROSTER:
                await ask_health(team.port(name))
        with anyio.move_on_after(1.0):
            await anyio.Event().wait()
        after = await report(team)
        assert pids(after) == pids(seen)
        assert all(entry.restarts == 0 for entry in after.specialists)


async def test_a_port_that_a_stranger_holds_is_named_and_taken_when_it_is_free(tmp_path: Path) -> None:
    team = Team.prepare(tmp_path, roster=ROSTER)
    with socket.create_server(("127.0.0.1", team.port("apollo"))) as stranger, team:
        started = await anyio.to_thread.run_sync(team.run, "up", "--wait-timeout", "1")
        team.is_up = True
        assert started.returncode != 0
        apollo = one(await report(team), "apollo")
        assert apollo.state == "backing_off"
        assert apollo.last_error is not None
        assert f"is held by pid {os.getpid()} (" in apollo.last_error
        stranger.close()
        await until(team, all_ready)


async def test_stop_and_start_in_quick_succession_end_with_it_running(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        async with control(team) as first, control(team) as second:
            for _ in range(5):
                with anyio.fail_after(20):
                    await first.call(Stop(names=["apollo"], wait=False))
                    result = await second.call(Start(names=["apollo"]))
                assert result.ok, result
        assert (await ask_health(team.port("apollo"))).pid == one(await report(team), "apollo").pid


async def test_fifty_restarts_leak_nothing(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        server = fork_server_of(team)
        supervisor = psutil.Process((await report(team)).supervisor.pid)

        async def settled() -> tuple[int, int]:
            """Descriptors of both, when the health connections are the only ones again."""
            await until(team, all_ready)
            return server.num_fds(), supervisor.num_fds()

        async with control(team) as operator:
            await operator.call(Restart(names=["apollo"]))
            before = await settled()
            for _ in range(50):
                result = await operator.call(Restart(names=["apollo"]))
                assert result.ok, result
            after = await settled()
        assert after[0] <= before[0] + 1
        assert after[1] <= before[1] + 2
        states = [child.status() for child in forked_by(server)]
        assert psutil.STATUS_ZOMBIE not in states
        assert len(states) <= 3


async def test_the_service_manager_hears_of_the_beginning_and_the_end(tmp_path: Path) -> None:
    said = b""
    team = Team.prepare(tmp_path, roster=ROSTER)
    path = str(Path(team.env["XDG_RUNTIME_DIR"]) / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, team:
        manager.bind(path)
        manager.settimeout(20)
        running = team.popen("up", "--foreground", env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"})
        while b"READY=1" not in said or b"WATCHDOG=1" not in said:
            said += manager.recv(4096) + b"\n"
        running.terminate()
        while b"STOPPING=1" not in said:
            said += manager.recv(4096) + b"\n"
        await anyio.to_thread.run_sync(running.communicate)
        assert running.returncode == 0


def test_an_early_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    team = Team.prepare(tmp_path, roster=ROSTER)
    with team:
        running = team.popen("up", "--foreground")
        lock = team.home / ".local/state/chorus/forkserver"
        while not lock.exists():
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=20)
        assert running.returncode == 0
        assert leftovers(team) == []


def test_marks_tell_the_story_of_a_specialist(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        team.run("restart", "apollo")
        team.run("stop", "apollo")
        told = re.findall(r"\[supervisor\] (.*)", log(team, "apollo"))
    assert re.match(r"started, pid \d+: the team was started", told[0])
    assert re.match(r"started, pid \d+: asked to restart", told[1])
    assert any("it had been replaced" in line for line in told)
    assert any("as asked" in line for line in told)


async def test_a_folder_that_a_logout_took_away_does_not_lock_the_operator_out(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=ROSTER) as team:
        before = pids(await report(team))
        shutil.rmtree(team.env["XDG_RUNTIME_DIR"])
        await anyio.to_thread.run_sync(
            lambda: wait_until(lambda: team.run("status").returncode == 0, 10, "the control socket is not made anew")
        )
        assert pids(await report(team)) == before
        # The fork server is not found at its place any more either: the next supervisor does without it.
        await kill_supervisor(team)
        shutil.rmtree(team.env["XDG_RUNTIME_DIR"])
        os.mkdir(team.env["XDG_RUNTIME_DIR"])
        await up(team)
        seen = await until(team, all_ready)
        assert pids(seen) == before
        assert all(entry.restarts == 0 for entry in seen.specialists)
