"""Deaths of those who keep a team alive, and clients who call all the while."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from typing import Self

import anyio
import psutil
from keeping import control, gone
from team import Team, wait_until

from protocol.control import Start
from supervisor.fleet.calls import FORK_SERVER

WITHIN = 60.0


def supervisor_of(team: Team) -> int:
    return int((team.home / ".local/state/chorus/supervisor.lock").read_text())


def fork_servers(team: Team) -> list[psutil.Process]:
    """Living fork servers below the supervisor."""
    found = []
    for process in psutil.Process(supervisor_of(team)).children():
        try:
            if " ".join(process.cmdline()).strip() == FORK_SERVER and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


async def new_fork_server(team: Team, old: int, wanted: Sequence[str] = ("apollo",)) -> psutil.Process:
    """The one that has taken the place of the old one, as soon as the team can be asked again.

    `wanted` are asked to start, and run already.
    """
    await anyio.to_thread.run_sync(
        lambda: wait_until(
            lambda: [one.pid for one in fork_servers(team)] not in ([], [old]), WITHIN, "there is no new fork server"
        )
    )
    async with control(team) as operator:
        with anyio.fail_after(WITHIN):
            while not (await operator.call(Start(names=[*wanted]))).ok:
                pass
    return fork_servers(team)[0]


async def kill_supervisor(team: Team) -> None:
    supervisor = supervisor_of(team)
    os.kill(supervisor, signal.SIGKILL)
    await gone(supervisor)


async def up(team: Team) -> None:
    """`chorus up`, with this test's event loop going on."""
    done = await anyio.to_thread.run_sync(team.run, "up")
    assert done.returncode == 0, done.stderr


class Callers:
    """Somebody connects to each port again and again, in a thread; what the kernel refuses is written down."""

    def __init__(self, ports: list[int]) -> None:
        self.refused: list[str] = []
        self.made = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(port,)) for port in ports]

    def _call(self, port: int) -> None:
        while not self._over.is_set():
            try:
                with socket.create_connection(("127.0.0.1", port), 10) as caller:
                    self.made += 1
                    caller.shutdown(socket.SHUT_WR)
            except ConnectionRefusedError:
                self.refused.append(f"{time.time():.3f}: {port}")
            except OSError:
                pass  # cut off by the end of the process that had accepted
            self._over.wait(0.002)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
