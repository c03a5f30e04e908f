"""A whole run: a real team, its clients, round after round of faults, and the invariants after each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from chaos import disasters, invariants
from chaos.load import GATEWAY, Load
from chaos.machine import Machine
from chaos.plan import KINDS, Fault, Round, plan
from chaos.stage import Stage
from msgspec import Struct, field
from team import ROOT, Team

from protocol import names as spelling
from protocol.settings import Supervision
from supervisor.fleet.restart import FORGIVEN_AFTER

PACE = 20  # tokens a second: a stream of a client takes three seconds
ROUND_WITHIN = 120.0  # seconds; a round that takes longer is itself a breach


class Conditions(Struct, frozen=True):
    """How a run is made. `brisk` is for a short run beside other tests: it shortens every limit of the supervision by four,
    and gives the machine more time.
    """

    count: int
    seed: int
    team: int = 18
    brisk: bool = False
    kinds: frozenset[str] = frozenset(KINDS)

    @property
    def settings(self) -> Supervision:
        return Supervision(health_period=0.5, hung_after=1.5) if self.brisk else Supervision()

    @property
    def patience(self) -> float:
        return 10.0 if self.brisk else 0.0


class Result(Struct):
    """What came of a run."""

    conditions: Conditions
    left_out: dict[str, str] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    took: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    seconds: float = 0.0
    rounds: int = 0
    lives: int = 0
    changes: int = 0
    stage: Stage | None = None
    load: Load | None = None
    flatness: invariants.Flatness = field(default_factory=invariants.Flatness)
    home: Path | None = None  # only when it was kept

    @property
    def is_clean(self) -> bool:
        return self.stage is not None and not self.stage.breaches


def names_of(count: int) -> list[str]:
    """So many specialists: the usual ones first, then names of no other use."""
    usual = list(spelling.ROSTER)[:count]
    return [*usual, *(f"extra_{number:03d}" for number in range(count - len(usual)))]


def run(conditions: Conditions) -> Result:
    """Makes a team in a folder of its own, has it go through everything, takes it down. The folder is kept on a breach."""
    top = Path(tempfile.mkdtemp(prefix="chorus-chaos-"))
    result = Result(conditions)
    machine = Machine(top / "home")
    try:
        machine.prepare()
        result.left_out = {kind: why for kind, why in machine.lacks.items() if kind in conditions.kinds}
        asyncio.run(_on_stage(top, machine, result))
    finally:
        machine.restore()
        if result.is_clean:
            shutil.rmtree(top, ignore_errors=True)
        else:
            result.home = top / "home"
            if result.stage is not None:
                _keep_logs(machine.logs, top / "logs")
    return result


def _keep_logs(logs: Path, to: Path) -> None:
    """Out of the small disk, which goes with us."""
    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(logs, to)


async def _on_stage(top: Path, machine: Machine, result: Result) -> None:
    conditions = result.conditions
    orders = top / "orders"
    orders.mkdir()
    supervision = conditions.settings
    config = (
        f"[backend]\nkind = 'builtin'\npace = {PACE}\n"
        f"[supervision]\nhealth_period = {supervision.health_period}\nhung_after = {supervision.hung_after}\n"
    )
    names = names_of(conditions.team)
    env = {
        "CHAOS_ORDERS": os.fspath(orders),
        "PYTHONPATH": f"{ROOT}:{Path(__file__).parent / 'orders'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "CHAOS_CLOCK": os.fspath(machine.clock),
    }
    team = await asyncio.to_thread(Team.start, top, config, names, env | {"CHORUS_GATEWAY": "true"})
    try:
        result.stage = stage = Stage(team, [*names, GATEWAY], machine, supervision, conditions.patience)
        load = result.load = Load(stage.ports, stage.judge)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(stage.witness.run()), group.create_task(load.run())]
            await _rounds(stage, result)
            for task in tasks:
                task.cancel()
    finally:
        await asyncio.to_thread(_take_down, team, result)


def _take_down(team: Team, result: Result) -> None:
    try:
        team.down()
    except AssertionError as error:
        if result.stage is None:
            raise
        result.stage.complain(str(error))


async def _rounds(stage: Stage, result: Result) -> None:
    conditions = result.conditions
    began = time.monotonic()
    await invariants.check(stage)
    for sentence in result.flatness.take(stage, 0):
        stage.complain(sentence)
    allowed = conditions.kinds - result.left_out.keys()
    rounds = plan(conditions.seed, conditions.count, stage.names, allowed, each_once=conditions.brisk)
    for number, faults_of_round in enumerate(rounds, 1):
        before = len(stage.breaches)
        stage.during = f"round {number}: " + ", ".join(_said(one) for one in faults_of_round)
        # Whoever is out of descriptors cannot look who its caller is, and says so.
        stage.also_honest = frozenset(["internal"] if any(one.kind == "descriptors" for one in faults_of_round) else [])
        try:
            async with asyncio.timeout(ROUND_WITHIN):
                await _round(stage, result, faults_of_round)
                await invariants.check(stage)
                for sentence in invariants.one_supervisor(stage):
                    stage.complain(sentence)
        except Exception as error:  # noqa: BLE001 - whatever it was, it is a breach, and the run goes on
            stage.complain(f"{type(error).__name__}: {error}")
        for sentence in result.flatness.take(stage, sum(result.done.values())):
            stage.complain(sentence)
        result.rounds = number
        broken = len(stage.breaches) - before
        print(
            f"{sum(result.done.values()):5d}/{conditions.count}  {time.monotonic() - began:7.1f} s  {stage.during}"
            + (f"  {broken} BREACHES" if broken else ""),
            flush=True,
        )
    stage.during = "the end"
    for sentence in invariants.event_log(stage):
        stage.complain(sentence)
    for sentence in result.flatness.verdict():
        stage.complain(sentence)
    result.seconds = time.monotonic() - began
    result.lives = stage.witness.lives
    result.changes = len(stage.witness.changes)


async def _round(stage: Stage, result: Result, faults_of_round: Round) -> None:
    rested = {name for one in faults_of_round for name in one.names}
    await asyncio.gather(*(stage.rested(name, FORGIVEN_AFTER) for name in rested))

    async def one(fault: Fault) -> None:
        await asyncio.sleep(fault.after)
        took = await disasters.ALL[fault.kind](stage, fault)
        result.done[fault.kind] += 1
        if took is not None:
            result.took[fault.kind].append(took)

    await asyncio.gather(*map(one, faults_of_round))


def _said(fault: Fault) -> str:
    whom = ", ".join(fault.names) if len(fault.names) < 4 else f"{len(fault.names)} of them"
    return f"{fault.kind} ({whom})"


def machine_said() -> str:
    """The machine, in one line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{os.cpu_count()} × {model}, Linux {platform.release()}, Python {platform.python_version()}"
