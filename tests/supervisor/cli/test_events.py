"""`chorus events`: every change of state with its cause, whoever is up or down, without loss and without duplicates."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from keeping import control, fork_server_of, wait_gone
from team import Team, wait_until

from protocol.control import Gap, Restart, Transition, Watch
from protocol.errors import ConnectionLost
from supervisor.cli.events import Order, recorded
from supervisor.cli.exits import Exit
from supervisor.fleet import eventlog
from supervisor.fleet.eventlog import EventLog
from supervisor.tail import Tail

ESCAPE = "\x1b"


def record(seq: int, at: float = 1.0) -> bytes:
    return b'{"type":"transition","seq":%d,"name":"apollo","from":"a","to":"b","cause":"c","at":%f}' % (seq, at)


def put(*lines: bytes) -> list[int | str]:
    """The numbers that are told, and the gaps between them."""
    return [shown(entry) for _, entry in Order().put(lines)]


def shown(entry: Transition | Gap) -> int | str:
    return f"gap of {entry.missed}" if isinstance(entry, Gap) else entry.seq


# -- the order of what is read ------------------------------------------------------------------------------------------


def test_a_number_that_is_missing_is_an_explicit_gap() -> None:
    assert put(record(1), record(2), record(5)) == [1, 2, "gap of 2", 5]


def test_what_is_read_twice_is_told_once() -> None:
    assert put(record(1), record(2), record(1), record(2), record(3)) == [1, 2, 3]


def test_counting_may_begin_anew() -> None:
    assert put(record(8, at=1.0), record(1, at=2.0), record(2, at=3.0)) == [8, 1, 2]


def test_torn_lines_and_places_of_lost_records_are_no_records() -> None:
    assert put(record(1), record(2)[:50], b"\0\0", b"", b"\0" + record(5), b"[]") == [1, "gap of 3", 5]


@pytest.mark.parametrize(
    ("end", "last"), [(b"", 2), (b"\0\0\0", "gap of 3"), (record(3)[:40], "gap of 1"), (record(3), 3)]
)
def test_what_is_missing_at_the_end_is_told_to_those_who_do_not_follow(
    tmp_path: Path, end: bytes, last: int | str
) -> None:
    (tmp_path / "events.ndjson").write_bytes(record(1) + b"\n" + record(2) + b"\n" + end)
    tail = Tail(tmp_path / "events.ndjson")
    found = list(recorded(tail, Order(), is_all=True))
    tail.close()
    assert shown(found[-1][1]) == last


def test_rotation_while_it_is_followed_loses_nothing_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventlog, "MAX_BYTES", 3000)
    log = EventLog(tmp_path / "events.ndjson")
    written = 0

    def write(count: int) -> None:
        nonlocal written
        for _ in range(count):
            written += 1
            log.append(Transition(seq=log.seq + 1, name="a", from_="b", to="c", cause="d", at=float(written)))

    write(30)
    readers = [(Tail(log.path), Order(), []) for _ in range(2)]  # type: ignore[var-annotated]
    for tail, order, told in readers:
        told += [shown(entry) for _, entry in recorded(tail, order, is_all=False)]
    for turn in range(100):
        write(turn % 25)
        if turn % 10 == 3:  # another supervisor writes from here on
            log.close()
            log = EventLog(log.path)
        for number, (tail, order, told) in enumerate(readers):
            if turn % (number + 1) == 0:  # the second one looks half as often
                told += [shown(entry) for lines, _ in tail.news() for _, entry in order.put(lines)]
    log.close()
    for tail, order, told in readers:
        told += [shown(entry) for lines, _ in tail.news() for _, entry in order.put(lines)]
        tail.close()
        assert told == list(range(told[0], written + 1))


# -- the command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with Team.start(tmp_path_factory.mktemp("events"), roster=["apollo", "athena"]) as team:
        yield team


def told(team: Team, *args: str) -> list[dict[str, Any]]:
    done = team.run("events", "--json", *args)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_restart_is_told_with_its_cause_its_signal_and_both_processes(team: Team) -> None:
    old = team.pid("apollo")
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: team.specialist("apollo")["restarts"] == 1, 10, "apollo was not restarted")
    wait_until(lambda: team.specialist("apollo")["state"] == "ready", 10, "apollo did not come back")
    ended, again, ready = told(team, "apollo")[-3:]
    assert (ended["from"], ended["to"], ended["signal"], ended["old_pid"]) == ("ready", "backing_off", "SIGKILL", old)
    assert ended["attempt"] == 1
    assert ended["next_due"] == pytest.approx(ended["at"], abs=1)
    assert again["cause"] == "restarted after: killed by SIGKILL"
    assert again["pid"] == ready["pid"] == team.pid("apollo")
    assert "killed by SIGKILL" in team.specialist("apollo")["last_exit"]["cause"]
    assert f"pid {again['pid']}: restarted after: killed by SIGKILL" in team.run("logs", "apollo").stdout


def test_people_see_time_name_states_cause_and_process_oldest_first(team: Team) -> None:
    lines = team.run("events", "-n", "all").stdout.splitlines()
    form = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}  (\w+) +(?:\w+ -> )?\w+ +\S.*")
    names = {found[1] for line in lines if (found := form.fullmatch(line))}
    assert names == {"supervisor", "apollo", "athena"}
    assert all(form.fullmatch(line) for line in lines), lines
    assert [line[:23] for line in lines] == sorted(line[:23] for line in lines)
    assert any(
        re.search(r"ready -> backing_off +killed by SIGKILL  \(pid \d+, next try at once\)$", one) for one in lines
    )


def test_events_are_those_of_whom_was_named_the_last_n_and_not_too_old(team: Team) -> None:
    assert {one["name"] for one in told(team, "Apollo-AI")} == {"apollo"}
    assert {one["name"] for one in told(team, "a*")} == {"apollo", "athena"}
    assert [one["to"] for one in told(team, "supervisor")] == ["running"]
    everything = told(team, "-n", "all")
    assert told(team, "-n", "2") == everything[-2:]
    assert told(team, "--since", "1h") == everything
    assert told(team, "--since", "2999-01-01") == []
    assert [one["seq"] for one in everything] == list(range(1, len(everything) + 1))


def test_a_stranger_is_exit_4_and_nonsense_exit_2(team: Team) -> None:
    assert team.run("events", "appollo").returncode == Exit.NO_SUCH_SPECIALIST
    assert team.run("events", "--since", "tomorrow").returncode == Exit.USAGE
    assert team.run("events", "-n", "many").returncode == Exit.USAGE


def test_colour_is_for_terminals_and_a_day_stands_above_its_events(team: Team) -> None:
    assert ESCAPE not in team.run("events").stdout
    assert ESCAPE in team.run("--color", "always", "events").stdout
    ours, theirs = pty.openpty()
    process = team.popen("events", "-n", "all", stdout=theirs, env={"TERM": "xterm-256color", "NO_COLOR": "1"})
    os.close(theirs)
    seen = b""
    while b"answers" not in seen:
        seen += os.read(ours, 65536)
    process.communicate(timeout=10)
    os.close(ours)
    assert ESCAPE not in seen.decode()
    assert re.match(r"\d{4}-\d\d-\d\d\r\n\d\d:\d\d:\d\d\.\d{3}  supervisor  ", seen.decode())


def test_following_ends_with_130_or_141(team: Team) -> None:
    following = team.popen("events", "-f", "-n", "1")
    assert following.stdout
    following.stdout.readline()
    following.send_signal(signal.SIGINT)
    assert following.communicate(timeout=10)[1].strip() == b""
    assert following.returncode == Exit.INTERRUPTED
    following = team.popen("events", "-f", "-n", "1")
    assert following.stdout
    following.stdout.close()
    assert following.wait(timeout=10) == Exit.BROKEN_PIPE
    assert following.stderr
    assert following.stderr.read() == b""
    following.stderr.close()


def test_before_the_first_start_it_says_so(tmp_path: Path) -> None:
    with Team.prepare(tmp_path) as nobody:
        done = nobody.run("events")
    assert (done.returncode, done.stdout) == (0, "")
    assert "do: chorus up" in done.stderr


# -- a supervisor that is killed ------------------------------------------------------------------------------------------


class Following:
    """`chorus events -f --json` of everything, beside a team."""

    def __init__(self, team: Team, path: Path) -> None:
        self.path = path
        with path.open("wb") as output:
            self.process = team.popen("events", "-f", "--json", "-n", "all", stdout=output, stderr=subprocess.DEVNULL)

    @property
    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def until(self, seq: int) -> list[dict[str, Any]]:
        wait_until(lambda: bool(self.told) and self.told[-1].get("seq", 0) >= seq, 20, f"event {seq} was not told")
        self.process.send_signal(signal.SIGINT)
        self.process.wait(10)
        return self.told


async def storm(team: Team, deaths: int) -> list[int]:
    """Restarts without end, in which the supervisor is killed; the numbers that its watchers were told."""
    heard: list[int] = []
    for _ in range(deaths):
        with anyio.fail_after(20):
            async with control(team) as watching, control(team) as asking:
                try:
                    async with anyio.create_task_group() as group:

                        async def ask() -> None:
                            while True:
                                await asking.call(Restart(wait=False))

                        group.start_soon(ask)
                        enough = len(heard) + 40
                        async for change in watching.ask(Watch()):
                            if isinstance(change, Transition):
                                heard.append(change.seq)
                                if len(heard) == enough:
                                    pid = int((team.home / ".local/state/chorus/supervisor.lock").read_text())
                                    os.kill(pid, signal.SIGKILL)
                                    wait_gone(pid)
                except* ConnectionLost:
                    pass
        assert (await anyio.to_thread.run_sync(lambda: team.run("up"))).returncode == 0
    return heard


def test_a_supervisor_killed_in_a_storm_of_events_loses_none(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=["apollo", "athena", "hermes"]) as team:
        followers = [Following(team, tmp_path / f"{number}.ndjson") for number in range(2)]
        heard = anyio.run(storm, team, 3)
        team.run("down")
        team.is_up = False
        recorded_ = told(team, "-n", "all")
        numbers = [one.get("seq") for one in recorded_]
        assert numbers == list(range(1, len(numbers) + 1))
        assert set(heard) <= set(numbers)
        assert [one["to"] for one in recorded_ if one["name"] == "supervisor"][-3:] == ["running", "stopping", "down"]
        assert sum("had ended without going down" in one["cause"] for one in recorded_) == 3
        for follower in followers:
            assert follower.until(len(numbers)) == recorded_


def test_the_loss_of_the_fork_server_is_an_event_of_the_house(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=["apollo"]) as team:
        fork_server = fork_server_of(team).pid
        os.kill(fork_server, signal.SIGKILL)
        wait_until(lambda: len(told(team, "supervisor")) >= 3, 20, "nothing was told")
        started, lost, goes_on = told(team, "supervisor")[:3]
    assert lost["cause"].endswith("starting over with a new one")
    assert goes_on["cause"] == "a new fork server takes over"
    assert {one["to"] for one in (started, lost, goes_on)} == {"running"}


def test_an_end_while_no_supervisor_was_there_is_told(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=["apollo"]) as team:
        apollo, supervisor = team.pid("apollo"), int(team.status()["supervisor"]["pid"])
        os.kill(supervisor, signal.SIGKILL)
        wait_gone(supervisor)
        os.kill(apollo, signal.SIGKILL)
        wait_gone(apollo)
        assert team.run("up").returncode == 0
        [missed] = [one for one in told(team, "apollo") if "while no supervisor" in one["cause"]]
    assert (missed["signal"], missed["old_pid"]) == ("SIGKILL", apollo)


def test_of_a_day_of_events_the_last_are_told(tmp_path: Path) -> None:
    with Team.prepare(tmp_path) as team:
        log = EventLog(team.home / ".local/state/chorus/events.ndjson")
        for number in range(20_000):
            log.append(Transition(seq=number + 1, name="apollo", from_="a", to="b", cause="c" * 100, at=1.0))
        log.close()
        assert len(told(team, "-n", "5")) == 5
