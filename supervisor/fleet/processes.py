"""The processes of one name: the one that has its place, those that have left it, and how they come to their end.

A process is asked with TERM, given its grace, asked again, killed. It has a grace of its own, which counts when nobody is there
any more. Where it is to have longer, USR1 after TERM makes it wait for the second TERM, which ends what is under way.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable

import anyio
import anyio.abc
from msgspec import Struct

from protocol.settings import ChildConfig, SpecialistConfig
from supervisor.fleet.link import Link

END_MARGIN = 2.0  # seconds between the end of a grace and force
STACKS_WITHIN = 0.3  # seconds a hung process has to write its stacks


class Incumbent(Struct):
    """The process that has the place. Its times are those of any steady clock."""

    pid: int
    running: ChildConfig
    started: float
    ready_since: float | None = None
    why_killed: str | None = None

    def ready_for(self, now: float) -> float:
        return now - self.ready_since if self.ready_since is not None else 0.0


class Processes:
    """Who there is. Written by the keeper, in whose own group the ends are waited for."""

    def __init__(self, name: str, link: Link, mark: Callable[[str, str], None]) -> None:
        self.replaced: set[int] = set()
        self._name = name
        self._link = link
        self._mark = mark
        self._now: Incumbent | None = None
        self._own_grace: dict[int, float] = {}  # what a process gives itself, where that is known
        self._waiting: dict[int, anyio.CancelScope] = {}

    @property
    def pid(self) -> int | None:
        return self._now.pid if self._now else None

    @property
    def running(self) -> ChildConfig | None:
        return self._now.running if self._now else None

    @property
    def started(self) -> float:
        """When the one that has the place was."""
        assert self._now is not None
        return self._now.started

    @property
    def now(self) -> tuple[ChildConfig, int]:
        """What the one that has the place was started with, and its pid."""
        assert self._now is not None
        return self._now.running, self._now.pid

    def take(self, pid: int, running: ChildConfig, started: float) -> None:
        """A process has the place, and whoever had it does not any more."""
        self._now = Incumbent(pid, running, started)
        # A program that is not ours would not understand USR1, so it is given no more than it takes.
        self._own_grace[pid] = running.grace if is_ours(running) else math.inf

    def answered(self, now: float) -> None:
        """It has answered, perhaps not for the first time."""
        if self._now is not None and self._now.ready_since is None:
            self._now.ready_since = now

    def leave(self) -> None:
        """Nobody has the place; the process that had it lives on until it is retired."""
        self._now = None

    def over(self, pid: int) -> Incumbent | None:
        """A process has ended; returns it where it had the place."""
        self.replaced.discard(pid)
        self._own_grace.pop(pid, None)
        if waiting := self._waiting.pop(pid, None):
            waiting.cancel()
        if self._now is None or self._now.pid != pid:
            return None
        before, self._now = self._now, None
        return before

    async def retire(self, group: anyio.abc.TaskGroup, pid: int, grace: float) -> None:
        """Has a predecessor finish what it has under way."""
        self.replaced.add(pid)
        await self._ask(group, pid, grace)

    async def end(self, group: anyio.abc.TaskGroup, grace: float) -> None:
        """Has the one that has the place end."""
        assert self._now is not None
        await self._ask(group, self._now.pid, grace)

    async def allow(self, group: anyio.abc.TaskGroup, pid: int, grace: float) -> None:
        """Gives one that has been asked `grace` seconds from now; what was allowed before counts no more."""
        if grace > self._own_grace.get(pid, math.inf):
            await self._link.signal(pid, signal.SIGUSR1)
        if waiting := self._waiting.get(pid):
            waiting.cancel()
        scope = self._waiting[pid] = anyio.CancelScope()
        group.start_soon(self._make_sure, scope, pid, grace)

    async def end_hung(self, pid: int, why: str) -> None:
        """Has a hung process write where it hangs, then ends it and its group, unless it has ended meanwhile."""
        hung = self._now
        if hung is None or hung.pid != pid:
            return
        hung.why_killed = why  # also where it ends of being woken
        if is_ours(hung.running):
            await self._link.signal(pid, signal.SIGUSR2)  # others have no stacks to write and would end of it
        # A stopped one writes them when it goes on, before anything else: where it was, and before threads run into it.
        await self._link.signal(pid, signal.SIGCONT)
        await anyio.sleep(STACKS_WITHIN)
        if self._now is hung:
            await self._link.signal(pid, signal.SIGKILL, group=True)

    async def _ask(self, group: anyio.abc.TaskGroup, pid: int, grace: float) -> None:
        await self._link.signal(pid, signal.SIGTERM)
        await self._link.signal(pid, signal.SIGCONT)  # a stopped one does not hear the first
        await self.allow(group, pid, grace)

    async def _make_sure(self, scope: anyio.CancelScope, pid: int, grace: float) -> None:
        with scope:
            await anyio.sleep(grace)
            # A second TERM ends its own grace: what is under way gets its last line now.
            await self._link.signal(pid, signal.SIGTERM)
            await anyio.sleep(END_MARGIN)
            if await self._link.signal(pid, signal.SIGKILL, group=True):
                self._mark(self._name, f"pid {pid} did not end in time and was killed")


def is_ours(config: ChildConfig) -> bool:
    """Whether it is a program of our own, which understands our signals."""
    return not (isinstance(config, SpecialistConfig) and config.command)


def resident(pid: int) -> int | None:
    """What a process has in memory, in bytes, as the kernel counts it; None for one that is gone."""
    if sys.platform != "linux":
        return _measured(pid)
    try:
        # proc(5), statm: the second figure is the resident set, in pages.
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as statm:
            return int(statm.read(64).split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def _measured(pid: int) -> int | None:
    import psutil

    try:
        rss: int = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None
    return rss
