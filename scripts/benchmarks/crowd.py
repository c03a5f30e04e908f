"""Two hundred specialists on one machine: whether all that holds of eighteen holds of them, and what it costs."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import statistics
import sys
import threading
import time
from typing import Self

import psutil
from msgspec import Struct

from benchmarks.instruments import (
    answering,
    children,
    descriptors,
    idle_use,
    is_alive,
    kill_and_ask,
    load,
    percentile,
    pss,
    timed,
)
from benchmarks.team import Bench
from supervisor.fleet.calls import FORK_SERVER, SPARE

SIZE = 200
FIRST_OFFSET = 100  # of the ports of names outside the table
KILLS = 10
IDLE = 20.0  # seconds
SETTLED_AFTER = 5.0  # seconds from the last start to the idle window
KNOCK_EVERY = 0.002  # seconds between two connections of the client that is never to be refused


class Figures(Struct, kw_only=True):
    """What was measured. Seconds, shares of a core, MiB."""

    size: int
    up: float
    status: list[float]
    down: float
    own_cpu: float
    all_cpu: float
    own_pss: float
    all_pss: float
    supervisor_descriptors: int
    fork_server_descriptors: int
    answers: list[float]
    at_once: float  # from killing ten in the same moment until the last of them answers
    knocks: int
    refused: int
    turned_away: int
    zombies: int
    doubles: int
    left: int
    loads: tuple[float, float]


def measure(size: int = SIZE) -> Figures:
    offsets = tuple(range(FIRST_OFFSET, FIRST_OFFSET + size))
    bench = Bench(offsets, CHORUS_ROSTER=",".join(f"voice{number:03}" for number in range(size)))
    began_at = load()
    try:
        bench.chorus("--version")  # compiled once: an installed program is not compiled at every start
        up = timed(lambda: bench.chorus("up"))
        print(f"  {size} are up after {up:.1f} s", file=sys.stderr)
        report = json.loads(bench.chorus("status", "--json").stdout)
        status = [timed(lambda: bench.chorus("status")) for _ in range(7)]
        pids = [one["pid"] for one in report["specialists"]]
        supervisor, fork_server = report["supervisor"]["pid"], psutil.Process(pids[0]).ppid()
        time.sleep(SETTLED_AFTER)
        everything = [supervisor, fork_server, *children(fork_server)]
        use = idle_use(everything, IDLE)
        memory = [pss(pid) for pid in everything]
        held = descriptors(supervisor), descriptors(fork_server)
        print(f"  idle; {sum(memory):.0f} MiB", file=sys.stderr)
        # Nobody twice: who dies again within ten seconds is made to wait, on purpose.
        chosen = [_one(bench, offset) for offset in random.sample(offsets, 2 * KILLS)]
        with Knocking([bench.port_base + offset for offset in offsets]) as knocking:
            healed = [kill_and_ask(*one) for one in chosen[:KILLS]]
            at_once = _at_once(chosen[KILLS:])
        print(f"  killed {2 * KILLS}", file=sys.stderr)
        zombies, doubles = _census(fork_server, size)
        ours = [supervisor, fork_server, *children(fork_server)]
        down = timed(lambda: bench.chorus("down"))
        return Figures(
            size=size,
            up=up,
            status=status,
            down=down,
            own_cpu=sum(use[:2]),
            all_cpu=sum(use),
            own_pss=sum(memory[:2]),
            all_pss=sum(memory),
            supervisor_descriptors=held[0],
            fork_server_descriptors=held[1],
            answers=[one.seconds for one in healed],
            at_once=at_once,
            knocks=knocking.knocks,
            refused=knocking.refused,
            turned_away=sum(one.turned_away for one in healed),
            zombies=zombies,
            doubles=doubles,
            left=sum(map(is_alive, ours)),
            loads=(began_at, load()),
        )
    finally:
        bench.chorus("down")
        shutil.rmtree(bench.home, ignore_errors=True)


def rows(figures: Figures) -> list[tuple[str, str]]:
    """The table, for people."""
    each = figures.all_pss / figures.size
    return [
        ("`chorus up` until all have answered", f"{figures.up:.2f} s"),
        ("`chorus status`, median of 7", f"{statistics.median(figures.status) * 1000:.0f} ms"),
        ("`chorus down` until nothing is left", f"{figures.down:.2f} s"),
        ("idle, supervisor and fork server", f"{figures.own_cpu * 100:.2f} % of a core"),
        ("idle, everything", f"{figures.all_cpu * 100:.2f} % of a core"),
        ("memory (PSS), supervisor and fork server", f"{figures.own_pss:.0f} MiB"),
        ("memory (PSS), everything", f"{figures.all_pss:.0f} MiB; {each:.1f} MiB a specialist"),
        (
            "descriptors of the supervisor, of the fork server",
            f"{figures.supervisor_descriptors}, {figures.fork_server_descriptors}",
        ),
        (
            f"kill -9 to answer, {len(figures.answers)} one by one",
            f"median {ms(figures.answers, 0.5)}, slowest {ms(figures.answers, 1)}",
        ),
        (f"kill -9 of {KILLS} in the same moment, until the last answers", f"{figures.at_once * 1000:.0f} ms"),
        (
            "connections refused meanwhile",
            f"{figures.refused} of {figures.knocks}; clients of the killed turned away: {figures.turned_away}",
        ),
        ("zombies, processes too many", f"{figures.zombies}, {figures.doubles}"),
        ("processes left by `chorus down`", f"{figures.left}"),
        ("load of the machine, before and after", f"{figures.loads[0]:.2f}, {figures.loads[1]:.2f}"),
    ]


def ms(seconds: list[float], share: float) -> str:
    return f"{percentile(seconds, share) * 1000:.1f} ms"


class Knocking:
    """Connects to one port after the other, in a thread of its own, and counts who refuses."""

    def __init__(self, ports: list[int]) -> None:
        self.knocks = self.refused = 0
        self._ports = ports
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._knock)

    def _knock(self) -> None:
        while not self._over.wait(KNOCK_EVERY):
            self.knocks += 1
            try:
                socket.create_connection(("127.0.0.1", random.choice(self._ports)), timeout=10).close()
            except OSError:
                self.refused += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _one(bench: Bench, offset: int) -> tuple[int, int]:
    port = bench.port_base + offset
    pid = answering(port, 30)
    assert pid is not None, f"nobody answers on port {port}"
    return pid, port


def _at_once(chosen: list[tuple[int, int]]) -> float:
    """Kills them all, and returns the seconds until a new process has answered on the last port."""
    began = time.perf_counter()
    for pid, _ in chosen:
        os.kill(pid, 9)
    for pid, port in chosen:
        while (now := answering(port, 30)) == pid:
            pass
        assert now is not None, f"nobody answers on port {port}"
    return time.perf_counter() - began


def _census(fork_server: int, size: int) -> tuple[int, int]:
    """Zombies below the fork server, and how many more specialists live than there are."""
    below = psutil.Process(fork_server).children()
    zombies = [child for child in below if child.status() == psutil.STATUS_ZOMBIE]
    nobody = (SPARE, FORK_SERVER)
    living = [child for child in below if child not in zombies and not " ".join(child.cmdline()).startswith(nobody)]
    return len(zombies), len(living) - size
