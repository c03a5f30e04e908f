"""A fork server and its processes that exist only in memory: small and obedient, for a keeper under a virtual clock.

Processes do what a test tells them: answer or stay silent, end by themselves, end when asked or only by force.
"""

from __future__ import annotations

import errno
import itertools
import signal
import socket
import time
from collections.abc import Callable
from typing import Literal

import anyio
import anyio.lowlevel
from msgspec import Struct

from protocol.messages import BackendState, HealthResponse
from protocol.settings import ChildConfig
from supervisor.errors import CannotStart
from supervisor.fleet.calls import Exited, Process
from supervisor.fleet.copies import Copies
from supervisor.fleet.health import RETRY_AFTER, START_WITHIN, Answering, Silent, Verdict

GOES_WITHIN = 0.05  # seconds in which an obedient process ends


class Scripted(Struct):
    """One process. `answers` and `obeys` are what it does from now on."""

    pid: int
    born: float
    answers: bool = True
    obeys: bool = True
    is_asked: bool = False
    draining: bool = False

    def told(self, name: str, of: str) -> Process:
        """As a fork server tells of it; `of` is the fingerprint of its configuration."""
        started = time.time() - (time.monotonic() - self.born)
        return Process(
            name=name,
            pid=self.pid,
            started=started,
            draining=self.draining,
            stopping=self.is_asked,
            fingerprint=of,
        )


class ScriptedLink:
    """What a keeper needs of the link to the fork server. `tell` hears of exits; `forks` are the moments of every fork."""

    def __init__(self, name: str, tell: Callable[[Exited], None]) -> None:
        self.name = name
        self.tell = tell
        self.living: dict[int, Scripted] = {}
        self.forks: list[float] = []
        self.can_fork = True
        self.answers = True  # what a new process does
        self.obeys = True
        self.backend: Literal["ready", "down"] = "ready"
        self.is_released = True
        self.copies = Copies()  # of no listener: nobody here has a socket
        self._pids = itertools.count(100)

    async def fork(self, config: ChildConfig) -> int:
        await anyio.lowlevel.checkpoint()
        if not self.can_fork:
            raise CannotStart(errno.EAGAIN, "Resource temporarily unavailable")
        pid = next(self._pids)
        self.living[pid] = Scripted(pid, time.monotonic(), self.answers, self.obeys)
        self.forks.append(time.monotonic())
        self.is_released = False
        return pid

    async def release(self, name: str) -> None:
        await anyio.lowlevel.checkpoint()
        self.is_released = True

    async def noted(self, pid: int) -> None:
        await anyio.lowlevel.checkpoint()

    async def lend(self, name: str) -> list[socket.socket]:
        await anyio.lowlevel.checkpoint()
        return []

    async def signal(self, pid: int, number: int, *, group: bool = False) -> bool:
        await anyio.lowlevel.checkpoint()
        process = self.living.get(pid)
        if process is None:
            return False
        if number == signal.SIGKILL:
            self.end(pid, None, signal.SIGKILL)
        elif number == signal.SIGTERM:
            process.is_asked = True
            if process.obeys:
                self.end(pid, 0, None)
        elif number == signal.SIGUSR1 and not process.is_asked:
            process.draining = True
        return True

    def end(self, pid: int, code: int | None, number: int | None) -> None:
        """A process ends, and its parent says so."""
        process = self.living.pop(pid)
        self.tell(Exited(name=self.name, pid=pid, code=code, signal=number, at=time.time(), asked=process.is_asked))

    async def watch(
        self,
        config: ChildConfig,
        pid: int,
        period: float,
        hung_after: float,
        is_waited_for: Callable[[], bool],
        report: Callable[[Verdict], None],
    ) -> None:
        """Stands in for `health.watch`: the same verdicts at the same moments, without a socket."""
        heard = time.monotonic()
        limit = max(START_WITHIN, hung_after)
        await anyio.sleep(RETRY_AFTER)
        while True:
            process = self.living.get(pid)
            if process is not None and process.answers:
                heard, limit = time.monotonic(), hung_after
                report(Answering(self._health(process)))
            elif time.monotonic() - heard >= limit:
                report(Silent(time.monotonic() - heard))
            await anyio.sleep(period)

    def _health(self, process: Scripted) -> HealthResponse:
        return HealthResponse(
            ai_id=f"{self.name}-ci",
            status="draining" if process.draining else "healthy",
            component=self.name,
            model="builtin",
            pid=process.pid,
            instance="scripted",
            clients=1,
            in_flight=0,
            queued=0,
            backend=BackendState(kind="builtin", url=None, state=self.backend, error=None),
            uptime=time.monotonic() - process.born,
            rss_bytes=1_000_000,
            loop_lag_ms=0.0,
            first_token_ms=None,
            tokens_per_second=None,
            prompt_tokens_per_second=None,
        )
