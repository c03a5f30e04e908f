"""What is measured with: clocks, processor time, memory, sockets. Linux only; nothing here starts a team."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import psutil
from msgspec import Struct

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable
REFUSED_PAUSE = 0.001  # seconds between two tries of a client that was refused
PING = b'{"type":"ping","request_id":1}\n'


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.1f} ms"


def percentile(seconds: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: a value that was measured, never one between two."""
    ranked = sorted(seconds)
    return ranked[max(0, min(len(ranked) - 1, int(len(ranked) * share + 0.999999) - 1))]


def wait_until(holds: Callable[[], bool], within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.005)


# -- processes ------------------------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def family(pid: int) -> list[int]:
    """A process and everything below it."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_gone(pids: Iterable[int], within: float = 60) -> None:
    """Returns when all of them have ended, to the moment: the kernel says so, nothing is polled."""
    deadline = time.monotonic() + within
    for pid in pids:
        try:
            ended = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([ended], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"process {pid} goes on")
        finally:
            os.close(ended)


def pss(pid: int) -> float:
    """Proportional set size in MiB."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def cpu(pid: int) -> float:
    """Processor time so far, in seconds."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def pin(pid: int, core: int) -> None:
    """Keeps a process, and what it starts from now on, on one core, where there is more than one."""
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(pid, {core})


def rss(pid: int) -> float:
    """Resident set size in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1_048_576


def idle_use(pids: Sequence[int], window: float) -> list[float]:
    """The share of one core that each of these takes, over a window in seconds."""
    before, began = [cpu(pid) for pid in pids], time.monotonic()
    time.sleep(window)
    after, took = [cpu(pid) for pid in pids], time.monotonic() - began
    return [(new - old) / took for old, new in zip(before, after, strict=True)]


# -- sockets --------------------------------------------------------------------------------------------------------------


def connection(host: str, port: int) -> socket.socket:
    made = socket.create_connection((host, port), timeout=30)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def ping(port: int) -> dict[str, object]:
    """One ping on a connection of its own; again where the process died under it."""
    while True:
        try:
            with connection("127.0.0.1", port) as asked:
                asked.sendall(PING)
                if line := asked.makefile("rb").readline():
                    answer: dict[str, object] = json.loads(line)
                    return answer
        except ConnectionError:
            pass


class Healed(Struct, frozen=True):
    """After a kill: seconds until a new process answered, and whether the client was ever refused or cut off."""

    seconds: float
    turned_away: bool


def kill_and_ask(pid: int, port: int, within: float = 60) -> Healed:
    """kill -9, and one client that wants an answer from that port until a new process gives it. Raises TimeoutError."""
    began = time.perf_counter()
    os.kill(pid, 9)
    turned_away = False
    while True:
        left = within - (time.perf_counter() - began)
        if left <= 0:
            raise TimeoutError(f"nobody answers on port {port}")
        try:
            if (new := pid_behind(port, left)) not in (None, pid):
                return Healed(time.perf_counter() - began, turned_away)
            turned_away = turned_away or new is None
        except ConnectionRefusedError:
            turned_away = True
            time.sleep(REFUSED_PAUSE)


def pid_behind(port: int, within: float) -> int | None:
    """Who answers on a port. None when it hangs up or does not answer in time; raises ConnectionRefusedError."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=within) as asked:
            asked.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked.sendall(PING)
            line = asked.makefile("rb").readline()
    except ConnectionRefusedError:
        raise
    except (ConnectionError, TimeoutError):
        return None
    pid = json.loads(line).get("pid") if line else None
    return int(pid) if pid is not None else None


def answering(port: int, within: float) -> int | None:
    """The pid of whoever answers on a port within so many seconds, or None."""
    deadline = time.monotonic() + within
    while (left := deadline - time.monotonic()) > 0:
        try:
            if (pid := pid_behind(port, left)) is not None:
                return pid
        except ConnectionRefusedError:
            pass
        time.sleep(REFUSED_PAUSE)
    return None


def free_base(offsets: Sequence[int]) -> int:
    """A port base at which nobody holds any of these ports."""
    bases = list(range(10_000, 31_000, 500))
    random.shuffle(bases)  # two runs at the same time do not meet
    for base in bases:
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for offset in offsets:
                held.enter_context(socket.create_server(("127.0.0.1", base + offset)))
            return base
    raise OSError("no free ports")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port: int = held.getsockname()[1]
        return port


# -- conditions -----------------------------------------------------------------------------------------------------------


def load() -> float:
    """Runnable processes of the last minute, of the whole machine."""
    return os.getloadavg()[0]


def noise() -> str:
    """How much the machine itself varies: the same work again and again."""

    def work() -> int:
        return sum(range(300_000))

    times = [timed(work) for _ in range(60)]
    spread = statistics.quantiles(times, n=20)
    low, middle, high = (spread[at] * 1000 for at in (0, 9, 18))
    return f"same work 60 times: median {middle:.1f} ms, p5 to p95 {low:.1f} to {high:.1f} ms"
