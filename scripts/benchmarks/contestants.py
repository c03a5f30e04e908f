"""What keeps eighteen children, and how it is started, asked, and ended; chorus is the first of them.

A child is a small asyncio program (child.py), or our own specialist without a supervisor (`chorus specialist run`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import psutil

from benchmarks.instruments import PYTHON, answering, children, free_base, is_alive, timed, wait_gone
from benchmarks.team import OFFSETS, surroundings
from protocol import names

LEAST_WAIT = 0.2  # seconds that each port has to answer, also when all have taken too long
BARE_OFFSET = 99  # of the port of a child that is started alone
MARK = "BENCH_FLEET"  # in the environment of a peer and of all that it starts: what it leaves behind is found by it
CHILD = Path(__file__).with_name("child.py")
IN_USE = ("address already in use", "is in use", "is held by")

Child = Literal["asyncio child", "chorus specialist"]


class Contestant:
    """One supervisor with its children on ports of its own, started and ended again and again in a folder of its own."""

    title = ""
    remark = ""

    def __init__(self, folder: Path, child: Child) -> None:
        self.child = child
        self.folder = folder / f"{type(self).__name__.lower()}-{child.split()[-1]}"
        self.folder.mkdir()
        base = free_base((*OFFSETS, BARE_OFFSET))
        self.ports = [base + names.OFFSETS[name] for name in names.ROSTER]
        self.bare_port = base + BARE_OFFSET
        self.environ = surroundings(self.folder, base) | {MARK: str(self.folder)}

    # -- what each of them does in its own way ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to start everything; returns at once."""
        raise NotImplementedError

    def hearts(self) -> dict[str, int]:
        """The processes that are not children, by what they are: the first is the one that is told to end."""
        raise NotImplementedError

    def account(self) -> str:
        """What it says itself of its children."""
        raise NotImplementedError

    # -- what is the same for all -------------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        return f"{self.title}, {self.child}"

    def pids(self, within: float = 30) -> dict[int, int | None]:
        """Who answers on each port, within so many seconds for all of them."""
        deadline = time.monotonic() + within
        return {port: answering(port, max(LEAST_WAIT, deadline - time.monotonic())) for port in self.ports}

    def wait_up(self) -> None:
        """Returns when a child has answered on every port."""
        if missing := [port for port, pid in self.pids(60).items() if pid is None]:
            raise TimeoutError(f"{self.label}: nobody answers on {len(missing)} ports; see {self.folder}")

    def settle(self) -> None:
        """Returns when the command that started everything has ended, where there is one."""

    def everything(self) -> list[int]:
        """All its processes."""
        hearts, answers = self.hearts().values(), self.pids(5).values()
        return list(dict.fromkeys([*hearts, *self.marked(), *(pid for pid in answers if pid)]))

    def stop(self) -> float:
        """An orderly end, by TERM: returns the seconds until the last process was gone."""
        ours = self.everything()
        return timed(lambda: self._end(ours))

    def _end(self, ours: list[int]) -> None:
        os.kill(next(iter(self.hearts().values())), signal.SIGTERM)
        wait_gone(ours)

    def is_running(self) -> bool:
        """Whether it is there itself."""
        return is_alive(next(iter(self.hearts().values())))

    def marked(self) -> list[int]:
        """Every process that it started and that lives, by what is in its environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def bare(self) -> subprocess.Popen[bytes]:
        """One child alone, on a port of its own, with nobody above it."""
        environ = {key: value for key, value in self.environ.items() if key != MARK}
        command = small(self.bare_port) if self.child == "asyncio child" else specialist("apollo", self.bare_port)
        return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def complaints(self) -> int:
        """How often a child has said so far that its port was taken."""
        texts = [log.read_text(errors="replace").lower() for log in self.folder.rglob("*.log") if log.is_file()]
        return sum(any(said in line for said in IN_USE) for text in texts for line in text.splitlines())

    def clear(self) -> None:
        """Ends by force whatever is left of it."""
        for pid in self.marked():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Chorus(Contestant):
    """The default team, with the builtin echo for a model server."""

    title = "chorus"
    remark = "defaults, builtin echo"
    _up: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [PYTHON, "-P", "-m", "supervisor.cli", "up"]
        self._up = subprocess.Popen(command, env=self.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def settle(self) -> None:
        assert self._up is not None
        self._up.wait(60)

    def hearts(self) -> dict[str, int]:
        lock = self.folder / ".local/state/chorus/supervisor.lock"
        specialist = answering(self.ports[0], 5)
        assert specialist is not None, f"chorus: nobody answers; see {self.folder}"
        return {"supervisor": int(lock.read_text()), "fork server": psutil.Process(specialist).ppid()}

    def everything(self) -> list[int]:
        # A title is written over the environment: the one that is forked ahead has no mark, and answers nobody.
        return list(dict.fromkeys([*super().everything(), *children(self.hearts()["fork server"])]))

    def account(self) -> str:
        return counted(one["state"] for one in json.loads(self._chorus("status", "--json").stdout)["specialists"])

    def clear(self) -> None:
        self._chorus("down", "--grace", "0")
        super().clear()

    def _chorus(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [PYTHON, "-P", "-m", "supervisor.cli", *args]
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False)


def small(port: int) -> list[str]:
    """-I and -S: it needs nothing but the standard library, and starts the sooner."""
    return [PYTHON, "-I", "-S", str(CHILD), str(port)]


def specialist(name: str, port: int | None = None) -> list[str]:
    return [PYTHON, "-P", "-m", "supervisor.cli", "specialist", "run", name, *(["--port", str(port)] if port else [])]


def counted(words: Iterable[str]) -> str:
    """`1 FATAL, 17 RUNNING`"""
    listed = list(words)
    return ", ".join(f"{listed.count(word)} {word}" for word in sorted(set(listed))) or "it does not answer"
