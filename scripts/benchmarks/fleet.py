"""Chorus beside supervisord and circus, in one run: kills, start, stop, idle use, memory, and the supervisor's own death.

Rounds are interleaved: each configuration has a block in every round, and the start of a bare child is measured before and
after each block, so that a machine that is busy for a minute is seen and does not decide.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from msgspec import Struct, field

from benchmarks.contestants import Chorus, Contestant
from benchmarks.instruments import answering, idle_use, is_alive, kill_and_ask, load, pss, timed, wait_gone
from benchmarks.peers import VERSIONS, Circus, Supervisord, install

LEFT_AFTER = 1.0  # seconds from its end until what lives counts as left behind
SETTLED_AFTER = 3.0  # seconds from the last start to the idle window
APART = (
    11.0  # seconds between two kills of one child: chorus forgives after ten, and a crash loop is not what is measured
)
TROUBLE = (TimeoutError, OSError, AssertionError)  # of one configuration: the others are measured all the same
PAUSES = (0.1, 1.3)  # seconds before each kill, uniform over more than one look of whoever polls


class Effort(Struct, frozen=True):
    """How much is measured."""

    rounds: int = 3
    kills: int = 20  # in each round
    bare: int = 5  # starts of a bare child, before and after each block
    idle: float = 20.0  # seconds
    patience: float = 15.0  # seconds in which a supervisor that was started again may set things right


QUICK = Effort(rounds=1, kills=6, bare=2, idle=3.0, patience=5.0)


class Figures(Struct):
    """What was measured of one configuration, over all rounds. Seconds, shares of a core, MiB."""

    label: str
    remark: str
    starts: list[float] = field(default_factory=list)
    stops: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    turned_away: int = 0
    own_cpu: list[float] = field(default_factory=list)
    all_cpu: list[float] = field(default_factory=list)
    own_pss: list[float] = field(default_factory=list)
    all_pss: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    trouble: str | None = None


class Loss(Struct, kw_only=True):
    """What became of everything after kill -9 of a process that is not a child."""

    label: str
    killed: str
    children: int
    alive: int  # of the children that were there, seconds later
    restarted_without: bool  # a child that was killed while nobody had set anything right
    kept: int  # ports answered by the process that was there before, after it was started again
    new: int
    in_use: int  # times that a child, or it itself, said that a port was taken
    account: str
    restarted_after: bool  # a child that was killed then
    by_hand: list[str]  # what an operator has to do until all answer
    answering: int  # ports, in the end
    left: int  # processes that an orderly end leaves behind


def measure(effort: Effort) -> tuple[list[Figures], list[Loss], str | None]:
    """Figures and losses of every configuration, and why the peers are missing where they are."""
    folder = Path(tempfile.mkdtemp(prefix="bf-"))  # short: a socket's path may have 108 bytes
    contestants: list[Contestant] = []
    try:
        commands = install(folder, VERSIONS)
        absent = commands if isinstance(commands, str) else None
        contestants.append(Chorus(folder, "chorus specialist"))
        if isinstance(commands, Path):
            contestants += [
                kind(folder, child, commands)
                for kind in (Supervisord, Circus)
                for child in ("asyncio child", "chorus specialist")
            ]
        figures = {one.label: Figures(one.label, one.remark) for one in contestants}
        for number in range(effort.rounds):
            for one in contestants[number % len(contestants) :] + contestants[: number % len(contestants)]:
                _block(one, figures[one.label], effort)
        losses = [loss for one in contestants for loss in _losses(one, figures[one.label], effort)]
        return list(figures.values()), losses, absent
    finally:
        for one in contestants:
            one.clear()
        shutil.rmtree(folder, ignore_errors=True)


def _block(one: Contestant, figures: Figures, effort: Effort) -> None:
    """One configuration in one round. One that fails is one row that says so."""
    print(f"  {one.label}: load {load():.2f}", file=sys.stderr)
    figures.loads.append(load())
    try:
        figures.bare += [_bare_start(one) for _ in range(effort.bare)]
        figures.starts.append(timed(lambda: _start(one)))
        one.settle()
        time.sleep(SETTLED_AFTER)
        hearts, everything = list(one.hearts().values()), one.everything()
        use = dict(zip(everything, idle_use(everything, effort.idle), strict=True))
        figures.own_cpu.append(sum(use[pid] for pid in hearts))
        figures.all_cpu.append(sum(use.values()))
        figures.own_pss.append(sum(map(pss, hearts)))
        figures.all_pss.append(sum(map(pss, everything)))
        _kills(one, figures, effort.kills)
        figures.stops.append(one.stop())
        figures.bare += [_bare_start(one) for _ in range(effort.bare)]
    except TROUBLE as error:
        _give_up(one, figures, error)


def _give_up(one: Contestant, figures: Figures, error: Exception) -> None:
    figures.trouble = f"{type(error).__name__}: {error}"
    print(f"  {one.label}: {figures.trouble}", file=sys.stderr)
    one.clear()


def _start(one: Contestant) -> None:
    one.start()
    one.wait_up()


def _bare_start(one: Contestant) -> float:
    """Seconds from starting one child alone to its first answer."""
    began = time.perf_counter()
    child = one.bare()
    try:
        assert answering(one.bare_port, 30) is not None, f"{one.label}: a child alone does not answer"
        return time.perf_counter() - began
    finally:
        child.kill()
        child.wait()


def _kills(one: Contestant, figures: Figures, count: int) -> None:
    """kill -9 of one child after the other."""
    last: dict[int, float] = {}
    for number in range(count):
        port = one.ports[number % len(one.ports)]
        time.sleep(max(random.uniform(*PAUSES), last.get(port, 0.0) + APART - time.monotonic()))
        pid = answering(port, 30)
        assert pid is not None, f"nobody answers on port {port}"
        healed = kill_and_ask(pid, port)
        last[port] = time.monotonic()
        figures.answers.append(healed.seconds)
        figures.turned_away += healed.turned_away


def _losses(one: Contestant, figures: Figures, effort: Effort) -> list[Loss]:
    """Its own death, and that of everything else that is not a child."""
    losses = []
    try:
        for index in range(2 if isinstance(one, Chorus) else 1):
            _start(one)
            one.settle()
            time.sleep(SETTLED_AFTER)
            losses.append(_lose(one, list(one.hearts())[index], effort.patience))
            one.clear()
    except TROUBLE as error:
        _give_up(one, figures, error)
    return losses


def _lose(one: Contestant, killed: str, patience: float) -> Loss:
    before = {port: pid for port, pid in one.pids().items() if pid is not None}
    by_hand: list[str] = []
    is_first = killed == next(iter(one.hearts()))
    os.kill(one.hearts()[killed], signal.SIGKILL)
    print(f"  {one.label}: {killed} killed", file=sys.stderr)
    time.sleep(SETTLED_AFTER)
    alive = sum(map(is_alive, before.values()))
    first, second, *_ = one.ports
    without = _restarts(one, first, patience)
    complaints = one.complaints()
    if is_first:
        one.start()
        by_hand.append("start it")
    time.sleep(patience)
    answers = one.pids(1)
    kept = sum(pid == before.get(port) for port, pid in answers.items() if pid is not None)
    new = sum(pid is not None for pid in answers.values()) - kept
    account, complaints = one.account(), one.complaints() - complaints
    after = _restarts(one, second, patience)
    if not (after and one.is_running()):
        # What is not looked after stands in the way of its successor.
        for pid in (orphans := [pid for pid in before.values() if is_alive(pid)]):
            os.kill(pid, signal.SIGKILL)
        by_hand.append(f"kill {len(orphans)} orphans")
        time.sleep(patience)
        if not one.is_running():
            one.start()
            by_hand.append("start it once more")
            time.sleep(patience)
    in_the_end = sum(pid is not None for pid in one.pids(1).values())
    return Loss(
        label=one.label,
        killed=killed,
        children=len(before),
        alive=alive,
        restarted_without=without,
        kept=kept,
        new=new,
        in_use=complaints,
        account=account,
        restarted_after=after,
        by_hand=by_hand,
        answering=in_the_end,
        left=_left(one),
    )


def _left(one: Contestant) -> int:
    """How many processes are left when it has ended in good order."""
    ours = one.everything()
    heart = next(iter(one.hearts().values()))
    os.kill(heart, signal.SIGTERM)
    wait_gone([heart])
    time.sleep(LEFT_AFTER)
    return sum(map(is_alive, ours))


def _restarts(one: Contestant, port: int, within: float) -> bool:
    """Whether a child that is killed is followed by another one."""
    pid = answering(port, 1)
    if pid is None:
        return False
    try:
        kill_and_ask(pid, port, within)
    except TimeoutError:
        return False
    return True
