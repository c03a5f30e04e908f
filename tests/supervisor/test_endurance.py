"""Crash loops, hangs and a sleeping supervisor, with the limits that everybody has who has set none."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from chaos.orders.sitecustomize import ORDER
from keeping import all_ready, ask_health, one, pids, report, until
from team import ROOT, Team

from protocol.client import connect
from protocol.control import StatusReport
from protocol.errors import ConnectionLost, Unavailable
from protocol.messages import Chat, StreamEnd
from supervisor.fleet.restart import JITTER, RETRY_FAILED_AFTER

ROSTER = ["apollo", "athena", "hermes"]
FOUND_WITHIN = 8.0  # seconds, what is promised of a hang
REPLACED_WITHIN = 1.0  # seconds: its stacks, its end, a fork, and a machine with other work
SLEEP = 8.0  # seconds, more than a hang would take
ROUND = 2.0  # seconds between two questions for health
EIGHT_SECONDS_LONG = "[backend]\nkind = 'builtin'\npace = 9.0\n"
LONG = "one two three four five six seven eight nine ten " * 6


@contextmanager
def team_under_orders(folder: Path, config: str = "") -> Iterator[tuple[Team, Path]]:
    """A team whose processes can be told from inside what to do, and the folder of their orders."""
    orders = folder / "orders"
    orders.mkdir()
    env = {"CHAOS_ORDERS": os.fspath(orders), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/chaos/orders'}"}
    with Team.start(folder, config, ROSTER, env) as team:
        yield team, orders


async def stream(port: int, content: str) -> float:
    """Seconds until an answer had come whole."""
    began = time.monotonic()
    async with connect("127.0.0.1", port) as connection:
        last = [reply async for reply in connection.ask(Chat(content=content, stream=True))][-1]
    assert isinstance(last, StreamEnd)
    return time.monotonic() - began


async def test_a_crash_loop_ends_in_failed_which_is_said_to_everybody_and_left_at_once_when_its_cause_is_gone(
    tmp_path: Path,
) -> None:
    with team_under_orders(tmp_path) as (team, orders):
        before = pids(await until(team, all_ready))
        (orders / "crash").touch()
        team.signal("apollo", signal.SIGKILL)

        def is_another(seen: StatusReport) -> bool:
            apollo = one(seen, "apollo")
            return apollo.state == "failed" or (apollo.state == "ready" and apollo.pid != before["apollo"])

        if one(await until(team, is_another), "apollo").state == "ready":
            team.signal("apollo", signal.SIGKILL)  # it had been forked ahead, when nobody crashed yet
        seen = await until(team, lambda now: one(now, "apollo").state == "failed")
        failed = one(seen, "apollo")
        assert failed.last_exit is not None
        assert failed.last_exit.code == 3
        assert "ended too often" in str(failed.last_error)
        assert {name: pid for name, pid in pids(seen).items() if name != "apollo"} == {
            name: pid for name, pid in before.items() if name != "apollo"
        }
        assert "apollo has failed" in (team.home / ".local/state/chorus/logs/supervisor.log").read_text()

        with anyio.fail_after(5), pytest.raises(Unavailable, match="ended too often") as refused:
            async with connect("127.0.0.1", team.port("apollo")) as connection:
                await connection.call(Chat(content="hello"))
        slowly = RETRY_FAILED_AFTER * (1 - JITTER) - 5, RETRY_FAILED_AFTER * (1 + JITTER)
        assert slowly[0] < (refused.value.retry_after or 0.0) < slowly[1]

        (orders / "crash").unlink()
        began = time.monotonic()
        assert (await anyio.to_thread.run_sync(team.run, "start", "apollo")).returncode == 0
        assert (await ask_health(team.port("apollo"))).pid == team.pid("apollo")
        assert time.monotonic() - began < 3


async def test_whoever_stops_spins_or_blocks_is_found_within_eight_seconds_and_replaced(tmp_path: Path) -> None:
    with team_under_orders(tmp_path) as (team, orders):
        before = pids(await until(team, all_ready))
        replaced_after: dict[str, float] = {}
        began = time.monotonic()

        async def replaced(name: str) -> None:
            while True:
                try:
                    if (await ask_health(team.port(name))).pid != before[name]:
                        replaced_after[name] = time.monotonic() - began
                        return
                except ConnectionLost:
                    pass  # it was killed while we waited for its answer

        for name, order in {"apollo": "spin", "athena": "block"}.items():
            (orders / str(before[name])).write_text(order)
            os.kill(before[name] or 0, ORDER)
        os.kill(before["hermes"] or 0, signal.SIGSTOP)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for name in ROSTER:
                    group.start_soon(replaced, name)
        assert max(replaced_after.values()) < FOUND_WITHIN + REPLACED_WITHIN, replaced_after
        for name in ROSTER:
            last = one(await report(team), name).last_exit
            assert last is not None
            assert last.cause.startswith("hung: no answer for")
            assert "most recent call first" in (team.home / f".local/state/chorus/logs/{name}.out").read_text()


@pytest.mark.long
async def test_a_supervisor_that_was_stopped_for_eight_seconds_restarts_nobody(tmp_path: Path) -> None:
    with team_under_orders(tmp_path, EIGHT_SECONDS_LONG) as (team, _):
        before = await until(team, all_ready)
        supervisor = before.supervisor.pid or 0
        os.kill(supervisor, signal.SIGSTOP)
        try:
            with anyio.fail_after(30):
                assert await stream(team.port("apollo"), LONG) > SLEEP
        finally:
            os.kill(supervisor, signal.SIGCONT)
        with anyio.fail_after(30):
            assert await stream(team.port("athena"), "hello") > ROUND  # whoever was to be found hung has been
        after = await report(team)
        assert pids(after) == pids(before)
        assert [one.restarts for one in after.specialists] == [0, 0, 0]
