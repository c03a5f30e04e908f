"""`reload` of whole teams: what it does, and what may come in between."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import anyio
import pytest
from keeping import all_ready, ask_health, control, fork_server_of, gone, one, pids, report, until
from ports import free_port_base
from team import Team

from protocol.client import connect
from protocol.control import Outcome, Planned, Reload, Restart, Result, Shutdown, Start, Stop, Transition, Watch
from protocol.errors import Internal, NotFound, Refused, Unavailable
from protocol.messages import Chat, Info, InfoResponse, StreamChunk, StreamEnd

LONG = "one two three four five " * 10
CRASHING = 'command = ["/bin/false"]\n'


def configuration(base: int, roster: Sequence[str], *more: str) -> str:
    names = ", ".join(f'"{name}"' for name in roster)
    return "\n".join([f"port_base = {base}", f"roster = [{names}]", '[backend]\nkind = "builtin"\npace = 20', *more])


class Configured:
    """A team whose configuration is a file and nothing else."""

    def __init__(self, team: Team) -> None:
        self.team = team

    def write(self, roster: Sequence[str], *more: str) -> None:
        text = configuration(self.team.port_base, roster, *more)
        (self.team.home / ".config/chorus/config.toml").write_text(text)

    async def reload(self, *, dry_run: bool = False) -> Result:
        async with control(self.team) as operator:
            with anyio.fail_after(30):
                return await operator.call(Reload(dry_run=dry_run))

    async def done(self, roster: Sequence[str], *more: str) -> Result:
        self.write(roster, *more)
        return await self.reload()


@asynccontextmanager
async def configured(folder: Path, roster: Sequence[str], *more: str) -> AsyncIterator[Configured]:
    base = free_port_base()
    team = Team.prepare(folder, configuration(base, roster, *more))
    del team.env["CHORUS_PORT_BASE"]  # or it would win over the file
    up = await anyio.to_thread.run_sync(team.run, "up")
    team.is_up = True
    try:
        assert up.returncode in (0, 6), up.stderr
        yield Configured(team)
    finally:
        await anyio.to_thread.run_sync(team.down)


def actions(result: Result) -> dict[str, str]:
    assert result.plan is not None
    return {change.name: change.action for change in result.plan.specialists}


async def persona(port: int) -> str:
    async with connect("127.0.0.1", port) as connection:
        answer = await connection.call(Info())
    assert isinstance(answer, InfoResponse)
    return answer.system_prompt


async def test_only_those_are_restarted_whose_own_has_changed_and_nobody_waits(tmp_path: Path) -> None:
    async with configured(tmp_path, ["apollo", "athena"]) as it:
        before = pids(await report(it.team))
        port = it.team.port("apollo")
        async with connect("127.0.0.1", port) as connection:
            replies = connection.ask(Chat(content=LONG, stream=True))
            while not isinstance(await anext(replies), StreamChunk):
                pass
            result = await it.done(["apollo", "athena"], '[specialists.apollo]\npersona = "You are another."')
            assert actions(result) == {"apollo": "restart", "athena": "keep"}
            [outcome] = result.changed
            assert (outcome.name, outcome.old_pid) == ("apollo", before["apollo"])
            assert outcome.down_ms is not None
            assert "You are another." in await persona(port)
            last = [reply async for reply in replies][-1]  # of the old one, which ends what it had begun
        assert isinstance(last, StreamEnd)
        seen = await report(it.team)
        assert one(seen, "apollo").pid == outcome.new_pid != before["apollo"]
        assert one(seen, "athena").pid == before["athena"]
        assert one(seen, "apollo").started_because == "its configuration has changed: persona"
        assert one(seen, "apollo").restarts == 0


async def test_nobody_is_refused_while_everybody_is_replaced_again_and_again(tmp_path: Path) -> None:
    roster = ["apollo", "athena", "metis"]
    async with configured(tmp_path, roster) as it:
        ports = [it.team.port(name) for name in roster]
        answered: list[str] = []
        over = threading.Event()

        def hammer(port: int) -> None:
            while not over.is_set():
                with socket.create_connection(("127.0.0.1", port), 10) as stream:
                    stream.sendall(b'{"type":"ping","close":true}\n')
                    assert b"pong" in stream.recv(4096)
                    answered.append("pong")

        async with anyio.create_task_group() as group:
            for port in ports:
                group.start_soon(anyio.to_thread.run_sync, hammer, port)
            try:
                for silence in range(30, 35):
                    result = await it.done(roster, f"[limits]\nsilence = {silence}.0")
                    assert len(result.changed) == 3
            finally:
                over.set()
        assert len(answered) > 100


async def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    async with configured(tmp_path, ["apollo", "athena"]) as it:
        before = await report(it.team)
        it.write(["apollo", "zeus"], "[specialists.zeus]", "[specialists.apollo]\nmodel = 'x'")
        first = await it.reload(dry_run=True)
        assert actions(first) == {"apollo": "restart", "zeus": "add", "athena": "remove"}
        assert first.changed == first.failed == []
        seen = await report(it.team)
        assert pids(seen) == pids(before)
        assert seen.supervisor.configuration == before.supervisor.configuration
        assert (await it.reload(dry_run=True)).plan == first.plan


async def test_a_broken_configuration_changes_nothing_and_all_its_mistakes_are_named(tmp_path: Path) -> None:
    async with configured(tmp_path, ["apollo"]) as it:
        before = pids(await report(it.team))
        result = await it.done(
            ["apollo"], "[supervision]", "intesity = 3", "grace = -1", "[specialists.apollo]\nport = 0"
        )
        assert not result.ok
        assert result.plan is not None
        file = it.team.home / ".config/chorus/config.toml"
        assert [mistake.split(": ")[0] for mistake in result.plan.mistakes] == [f"{file}:{line}" for line in (7, 8, 10)]
        assert result.plan.specialists == []
        assert pids(await report(it.team)) == before


async def test_a_file_that_cannot_be_read_at_all_does_not_end_the_supervisor(tmp_path: Path) -> None:
    async with configured(tmp_path, ["apollo"]) as it:
        before = await report(it.team)
        (it.team.home / ".config/chorus/config.toml").write_text("x = " + "[" * 5000)
        with pytest.raises(Internal, match="chorus logs supervisor"):
            await it.reload()
        it.write(["apollo"])
        assert actions(await it.reload()) == {"apollo": "keep"}
        seen = await report(it.team)
        assert (seen.supervisor.pid, pids(seen)) == (before.supervisor.pid, pids(before))


async def test_who_is_added_answers_and_who_is_removed_is_gone_from_everywhere(tmp_path: Path) -> None:
    async with configured(tmp_path, ["apollo", "athena"]) as it, control(it.team) as looker:
        port = it.team.port("athena")
        watch = looker.ask(Watch())
        await anext(watch)
        result = await it.done(["zeus", "apollo"], "[specialists.zeus]")
        assert actions(result) == {"zeus": "add", "apollo": "keep", "athena": "remove"}
        seen = await report(it.team)
        assert [entry.name for entry in seen.specialists] == ["zeus", "apollo"]  # in the roster's order
        assert (await ask_health(one(seen, "zeus").port)).pid == one(seen, "zeus").pid
        with pytest.raises(Refused):
            await ask_health(port)
        told: dict[str, list[str]] = {"zeus": [], "athena": []}
        with anyio.fail_after(10):
            while told["athena"][-1:] != ["absent"] or "ready" not in told["zeus"]:
                change = await anext(watch)
                if isinstance(change, Transition) and change.name in told:
                    told[change.name].append(change.to)
        assert told["zeus"] == ["stopped", "starting", "ready"]
        assert told["athena"] == ["stopping", "stopped", "absent"]
        async with control(it.team) as operator:
            with pytest.raises(NotFound):
                await operator.call(Restart(names=["athena"]))
            assert (await operator.call(Restart(names=["zeus"]))).ok
        journal = (it.team.home / ".local/state/chorus/registry.json").read_text
        with anyio.fail_after(5):
            while '"athena"' in journal():  # noqa: ASYNC110 - written a moment after the change
                await anyio.sleep(0.01)


async def test_a_moved_port_is_there_before_the_old_one_goes(tmp_path: Path) -> None:
    async with configured(tmp_path, ["apollo"]) as it:
        old = it.team.port("apollo")
        new = it.team.port_base + 150
        result = await it.done(["apollo"], f"[specialists.apollo]\nport = {new}")
        assert result.plan is not None
        assert result.plan.specialists[0].why == [f"port {old} -> {new}"]
        seen = one(await report(it.team), "apollo")
        assert (seen.port, seen.pid) == (new, (await ask_health(new)).pid)
        assert result.changed[0].old_pid is not None
        await gone(result.changed[0].old_pid)
        with pytest.raises(Refused):
            await ask_health(old)


async def test_a_port_that_a_stranger_holds_leaves_the_old_one_as_it_is_and_can_be_asked_for_again(
    tmp_path: Path,
) -> None:
    async with configured(tmp_path, ["apollo"]) as it:
        before = one(await report(it.team), "apollo")
        with socket.create_server(("127.0.0.1", 0)) as stranger:
            new = stranger.getsockname()[1]
            result = await it.done(["apollo"], f"[specialists.apollo]\nport = {new}")
            assert not result.ok
            assert result.failed[0].error is not None
            assert f"port {new} is held by pid {os.getpid()}" in result.failed[0].error
            assert (await ask_health(before.port)).pid == before.pid
            seen = one(await until(it.team, lambda seen: one(seen, "apollo").notice is not None), "apollo")
            assert seen.port == before.port
            assert seen.notice is not None
            assert seen.notice.startswith(f"could not be replaced, and runs as it was started: port {new} is held by")
        again = await it.reload()
        assert actions(again) == {"apollo": "restart"}
        seen = one(await report(it.team), "apollo")
        assert (await ask_health(new)).pid == seen.pid
        assert seen.notice is None


async def test_two_may_change_places_and_a_whole_team_may_move_by_one(tmp_path: Path) -> None:
    roster = ["engram", "hermes", "ergon"]  # on ports 0, 1 and 2
    async with configured(tmp_path, roster) as it:
        base = it.team.port_base
        swapped = f"[specialists.engram]\nport = {base + 1}\n[specialists.hermes]\nport = {base}"
        assert (await it.done(roster, swapped)).ok
        seen = await until(it.team, all_ready)
        assert {entry.name: entry.port - base for entry in seen.specialists} == {"engram": 1, "hermes": 0, "ergon": 2}
        it.write(roster, *(f"[specialists.{name}]\nport = {base + 1 + at}" for at, name in enumerate(roster)))
        assert (await it.reload()).ok
        seen = await until(it.team, all_ready)
        for at, name in enumerate(roster):
            assert (await ask_health(base + 1 + at)).pid == one(seen, name).pid


async def test_how_it_is_kept_changes_without_a_restart(tmp_path: Path) -> None:
    async with configured(tmp_path, ["apollo"]) as it:
        before = pids(await report(it.team))
        result = await it.done(["apollo"], "[supervision]\nrestart = 'never'\nhealth_period = 0.5\nhung_after = 2.0")
        assert actions(result) == {"apollo": "live"}
        assert pids(await report(it.team)) == before
        it.team.signal("apollo", signal.SIGKILL)
        seen = one(await until(it.team, lambda seen: one(seen, "apollo").state == "failed"), "apollo")
        assert seen.remedy == "chorus start apollo"
        again = await it.done(["apollo"], "[supervision]\nrestart = 'always'")
        assert actions(again) == {"apollo": "retry"}
        assert again.changed[0].new_pid is not None


async def test_one_that_was_stopped_stays_stopped_and_has_it_at_its_next_start(tmp_path: Path) -> None:
    async with configured(tmp_path, ["apollo", "athena"]) as it, control(it.team) as operator:
        assert (await operator.call(Stop(names=["apollo"]))).ok
        new = it.team.port_base + 150
        result = await it.done(["apollo", "athena"], f"[specialists.apollo]\nport = {new}")
        assert actions(result) == {"apollo": "live", "athena": "keep"}
        seen = one(await report(it.team), "apollo")
        assert (seen.state, seen.port) == ("stopped", new)
        assert (await operator.call(Start(names=["apollo"]))).ok
        assert (await ask_health(new)).pid == one(await report(it.team), "apollo").pid


async def test_one_in_a_crash_loop_can_be_mended_moved_and_removed(tmp_path: Path) -> None:
    crashing = "[supervision]\nintensity = 1\n[specialists.apollo]\n" + CRASHING
    async with configured(tmp_path, ["apollo", "athena"], crashing) as it:
        await until(it.team, lambda seen: one(seen, "apollo").state == "failed")
        new = it.team.port_base + 150
        moved = await it.done(["apollo", "athena"], f"[specialists.apollo]\nport = {new}")
        assert actions(moved)["apollo"] == "restart"
        assert moved.ok
        assert (await ask_health(new)).pid == one(await report(it.team), "apollo").pid
        with pytest.raises(Refused):
            await ask_health(it.team.port_base + 12)  # where the supervisor had stood in for it
        await it.done(["apollo", "athena"], "[supervision]\nintensity = 100\n[specialists.apollo]\n" + CRASHING)
        await until(it.team, lambda seen: one(seen, "apollo").restarts > 4)
        removed = await it.done(["athena"])
        assert actions(removed)["apollo"] == "remove"
        assert [entry.name for entry in (await report(it.team)).specialists] == ["athena"]


async def test_two_at_once_come_one_after_the_other(tmp_path: Path) -> None:
    async with configured(tmp_path, ["apollo"]) as it:
        it.team.env["CHORUS_ROSTER"] = "apollo"  # for fork_server_of alone
        server = fork_server_of(it.team)
        it.write(["apollo"], "[limits]\nsilence = 30.0")
        results: list[Result] = []

        async def once() -> None:
            results.append(await it.reload())

        async with anyio.create_task_group() as group, control(it.team) as first:
            server.suspend()  # nobody can be started for a moment
            try:
                answers = first.ask(Reload())
                while not isinstance(await anext(answers), Planned):
                    pass
                group.start_soon(once)
                assert (await report(it.team)).supervisor.state == "running"
            finally:
                server.resume()
            results.append([answer async for answer in answers][-1])  # type: ignore[arg-type]
        assert [actions(result) for result in results] == [{"apollo": "restart"}, {"apollo": "keep"}]


async def test_who_is_leaving_may_come_back_before_it_is_gone(tmp_path: Path) -> None:
    async with configured(tmp_path, ["apollo", "athena"]) as it, AsyncStream(it, "athena") as stream:
        before = pids(await report(it.team))
        await stream.begin()
        it.write(["apollo"])
        removed: list[Result] = []

        async def remove() -> None:
            removed.append(await it.reload())

        async with anyio.create_task_group() as group:
            group.start_soon(remove)
            await until(it.team, lambda seen: one(seen, "athena").state == "stopping")
            async with control(it.team) as operator:
                refused = await operator.call(Start(names=["athena"]))
            assert refused.failed[0].error == "it is not in the configuration any more, and is leaving"
            it.write(["apollo", "athena"])
            group.start_soon(stream.end)
            back = await it.reload()
        assert (actions(back)["athena"], back.ok) == ("add", True)
        assert removed[0].failed[0].error == "it is in the configuration again"
        seen = await until(it.team, all_ready)
        assert one(seen, "apollo").pid == before["apollo"]
        assert (await ask_health(it.team.port("athena"))).pid == one(seen, "athena").pid != before["athena"]
        async with control(it.team) as operator:
            assert (await operator.call(Restart(names=["athena"]))).ok


async def test_in_the_middle_of_a_restart_it_waits_for_its_turn(tmp_path: Path) -> None:
    async with configured(tmp_path, ["apollo"]) as it, control(it.team) as operator:
        it.write(["apollo"], '[specialists.apollo]\npersona = "You are another."')
        async with anyio.create_task_group() as group:
            group.start_soon(operator.call, Restart(names=["apollo"]))
            assert (await it.reload()).ok
        seen = await until(it.team, all_ready)
        assert "You are another." in await persona(it.team.port("apollo"))
        assert (await ask_health(it.team.port("apollo"))).pid == one(seen, "apollo").pid


async def test_a_team_that_goes_down_is_not_reloaded_and_goes_down_in_the_middle_of_one(tmp_path: Path) -> None:
    async with configured(tmp_path, ["apollo", "athena"]) as it, AsyncStream(it) as stream:
        await stream.begin()
        it.write(["apollo", "zeus"], "[specialists.zeus]", "[limits]\nsilence = 30.0")
        async with control(it.team) as first, control(it.team) as second, anyio.create_task_group() as group:
            group.start_soon(first.call, Shutdown(grace=5.0))
            await until(it.team, lambda seen: seen.supervisor.state == "stopping")
            with pytest.raises(Unavailable, match="goes down"):
                await second.call(Reload())
            await stream.end()
    assert not it.team.processes()


async def test_a_down_in_the_middle_of_a_reload_leaves_nobody(tmp_path: Path) -> None:
    async with configured(tmp_path, ["apollo", "athena"]) as it:
        it.write(["apollo", "zeus"], "[specialists.zeus]", "[limits]\nsilence = 30.0")
        ours = it.team.processes()
        async with control(it.team) as operator:
            answers = operator.ask(Reload())
            while not isinstance(await anext(answers), Planned):
                pass
            down = await anyio.to_thread.run_sync(it.team.run, "down")
            assert down.returncode == 0
        it.team.is_up = False
        for process in ours:
            await gone(process.pid)
        for offset in (5, 12, 100):
            with pytest.raises(Refused):
                await ask_health(it.team.port_base + offset)


async def test_what_was_asked_for_goes_on_when_its_client_leaves(tmp_path: Path) -> None:
    async with configured(tmp_path, ["apollo"]) as it:
        before = pids(await report(it.team))
        it.write(["apollo"], "[limits]\nsilence = 30.0")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect((it.team.home / ".local/state/chorus/socket").read_text().strip())
            client.sendall(b'{"type":"reload"}\n')
        seen = await until(it.team, lambda seen: all_ready(seen) and pids(seen) != before)
        assert one(seen, "apollo").started_because == "its configuration has changed: limits.silence 60 -> 30"


async def test_the_new_team_is_what_stands_after_the_fork_server_s_death(tmp_path: Path) -> None:
    async with configured(tmp_path, ["apollo", "athena"]) as it:
        it.team.env["CHORUS_ROSTER"] = "apollo"  # for fork_server_of alone
        result = await it.done(["apollo", "zeus"], "[specialists.zeus]")
        assert result.failed == []
        before = await report(it.team)
        fork_server_of(it.team).kill()
        restarted = await operator_restart(it.team)
        assert not [outcome for outcome in restarted if outcome.error]
        seen = await until(it.team, all_ready)
        assert [entry.name for entry in seen.specialists] == ["apollo", "zeus"]
        assert not set(pids(seen).values()) & set(pids(before).values())


async def operator_restart(team: Team) -> list[Outcome]:
    """A restart of everybody, as soon as there is a fleet again."""
    with anyio.fail_after(30):
        while True:
            async with control(team) as operator:
                result = await operator.call(Restart())
            if result.ok:
                return result.changed
            await anyio.sleep(0.05)


class AsyncStream:
    """An answer under way."""

    def __init__(self, it: Configured, name: str = "apollo") -> None:
        self._it = it
        self._name = name

    async def __aenter__(self) -> Self:
        self._connected = connect("127.0.0.1", self._it.team.port(self._name))
        self._connection = await self._connected.__aenter__()
        return self

    async def __aexit__(self, *how: object) -> None:
        await self._connected.__aexit__(None, None, None)

    async def begin(self) -> None:
        self._replies = self._connection.ask(Chat(content=LONG, stream=True))
        while not isinstance(await anext(self._replies), StreamChunk):
            pass

    async def end(self) -> None:
        async for _reply in self._replies:
            pass
