"""The suite itself can fail: what it is to find is done on purpose, and found."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from chaos import disasters, invariants, plan
from chaos.load import Load, Outcome
from chaos.machine import Machine
from chaos.plan import KINDS, Fault
from chaos.stage import Stage
from chaos.witness import Witness
from team import ROOT, Team

from protocol.settings import Supervision

ROSTER = ["apollo", "athena"]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A quiet team under observation."""
    orders = tmp_path / "orders"
    orders.mkdir()
    env = {"CHAOS_ORDERS": os.fspath(orders), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/chaos/orders'}"}
    with Team.start(tmp_path, roster=ROSTER, env=env) as team:
        yield Stage(team, ROSTER, Machine(team.home), Supervision())


@asynccontextmanager
async def asked(stage: Stage) -> AsyncIterator[list[Outcome]]:
    """With clients that ask all the time; yields what came of their questions."""
    outcomes: list[Outcome] = []

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        stage.judge(outcome)

    load = asyncio.create_task(Load(stage.ports, note).run())
    try:
        yield outcomes
    finally:
        load.cancel()
        await asyncio.wait([load])


async def until_complaint(stage: Stage) -> str:
    with anyio.fail_after(15):
        while not stage.breaches:  # noqa: ASYNC110 - a complaint has no event
            await anyio.sleep(0.01)
    return stage.breaches[0].sentence


async def test_a_quiet_team_breaks_no_promise(stage: Stage) -> None:
    async with asked(stage) as outcomes:
        while not {"one question", "stream", "half-closing"} <= {one.kind for one in outcomes}:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    assert await invariants.look(stage) == []
    assert invariants.one_supervisor(stage) == []
    assert invariants.event_log(stage) == []
    assert stage.breaches == []


async def test_a_second_process_of_a_name_is_found(stage: Stage) -> None:
    title = stage.titles["apollo"]
    code = f"import setproctitle, sys; setproctitle.setproctitle({title!r}); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as second:
        assert second.stdout is not None
        second.stdout.readline()
        [complaint] = await invariants.look(stage)
        second.kill()
    assert str(second.pid) in complaint
    assert "bear its title" in complaint


async def test_a_stopped_specialist_is_found(stage: Stage) -> None:
    pid = (await stage.status("apollo"))["pid"]
    stage.settings = Supervision(hung_after=0.5)
    os.kill(pid, signal.SIGSTOP)
    complaints = await invariants.look(stage)
    os.kill(pid, signal.SIGCONT)
    assert complaints == ["apollo: a question for its health ended with TimeoutError()"]


async def test_a_refused_connection_is_found(stage: Stage) -> None:
    async with asked(stage):
        with stage.dying("apollo"):  # not even a death excuses it
            await asyncio.to_thread(stage.team.run, "stop", "apollo")
            assert "refused" in await until_complaint(stage)


async def test_an_answer_that_is_cut_by_nobody_is_found(stage: Stage) -> None:
    async with asked(stage):
        await asyncio.sleep(0.5)  # streams are under way
        os.kill((await stage.status("apollo"))["pid"], signal.SIGKILL)
        assert "cut" in await until_complaint(stage)


async def test_an_end_that_the_status_tells_otherwise_is_found(stage: Stage) -> None:
    before = await stage.before("apollo")
    os.kill(before.pid, signal.SIGTERM)
    await stage.answered_by_another("apollo", before.pid, 5.0, asyncio.get_running_loop().time())
    await stage.ended_as(before, code=None, signal="SIGKILL", cause="killed by SIGKILL")
    assert "the status says" in await until_complaint(stage)


async def test_a_restart_that_comes_late_is_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chaos.faults.QUICKLY", 0.0)
    assert await disasters.ALL["kill"](stage, Fault("kill", ("apollo",), 0.0, 0.0)) is None
    assert "was not answered by another process" in await until_complaint(stage)


def test_descriptors_that_leak_are_found() -> None:
    flatness = invariants.Flatness()
    assert flatness.look_at("supervisor", os.getpid(), 0) == []
    with ExitStack() as opened:
        for _ in range(invariants.MORE_DESCRIPTORS + 1):
            opened.enter_context(open(os.devnull))
        [complaint] = flatness.look_at("supervisor", os.getpid(), 1)
    assert "descriptors open" in complaint


def test_memory_that_grows_slowly_is_found() -> None:
    flatness = invariants.Flatness()
    flatness.samples = [
        invariants.Sample("supervisor", 1, faults, 20, 30_000_000 + faults * 20_000) for faults in range(500)
    ]
    [complaint] = flatness.verdict()
    assert "memory grew" in complaint


async def test_a_hole_in_the_events_is_found(tmp_path: Path) -> None:
    lines = [
        '{"type":"snapshot","seq":4}',
        '{"type":"transition","seq":5,"name":"apollo","from":"ready","to":"backing_off","cause":"killed"}',
        '{"type":"transition","seq":7,"name":"apollo","from":"starting","to":"ready","cause":"answers"}',
    ]

    async def tell(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write("".join(f"{line}\n" for line in lines).encode())
        await writer.drain()
        writer.close()

    complaints: list[str] = []
    told = asyncio.Event()
    (tmp_path / "socket").write_text(f"{tmp_path / 's'}\n")

    def complain(sentence: str) -> None:
        complaints.append(sentence)
        told.set()

    server = await asyncio.start_unix_server(tell, tmp_path / "s")
    witness = asyncio.create_task(Witness(tmp_path / "socket", complain).run())
    with anyio.fail_after(5):
        await told.wait()
    witness.cancel()
    await asyncio.wait([witness])
    server.close()
    await server.wait_closed()
    assert "7 came after 5" in complaints[0]


async def test_an_event_that_is_missing_on_disk_is_found(stage: Stage) -> None:
    log = stage.state / "events.ndjson"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2] + lines[3:]))
    assert "have a hole" in invariants.event_log(stage)[0]


def test_the_same_seed_makes_the_same_faults() -> None:
    names, kinds = ["a", "b", "c", "d", "e", "f"], frozenset(KINDS)
    assert plan.plan(1, 100, names, kinds) == plan.plan(1, 100, names, kinds)
    assert plan.plan(1, 100, names, kinds) != plan.plan(2, 100, names, kinds)


@pytest.mark.parametrize("count", [1, 22, 100, 1000])
def test_a_plan_has_as_many_faults_as_asked_and_nobody_twice_in_a_round(count: int) -> None:
    rounds = plan.plan(7, count, [str(number) for number in range(18)], frozenset(KINDS))
    assert sum(map(len, rounds)) == count
    for one in rounds:
        hit = [name for fault in one for name in fault.names]
        assert len(hit) == len(set(hit))


def test_a_short_plan_has_every_kind() -> None:
    rounds = plan.plan(7, len(KINDS), [str(number) for number in range(18)], frozenset(KINDS), each_once=True)
    assert {fault.kind for one in rounds for fault in one} == set(KINDS)


def test_a_broken_promise_ends_the_script_with_1_and_keeps_the_home() -> None:
    code = (
        "import runpy, sys; sys.path[:0] = ['tests']; import chaos.faults; chaos.faults.QUICKLY = 0.0;"
        "sys.argv = ['scripts/chaos', '1', '--team', '2', '--only', 'kill'];"
        "runpy.run_path('scripts/chaos', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    kept = Path(done.stderr.rpartition(": ")[2].strip())
    try:
        assert (kept / ".local/state/chorus/registry.json").exists()
        assert (kept.parent / "logs/supervisor.log").exists()
    finally:
        subprocess.run(["rm", "-r", kept.parent], check=True)
    assert "was not answered by another process" in done.stdout
