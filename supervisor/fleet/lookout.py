"""Looks at one specialist's unit whenever something may have changed: its process ended, or systemd was given an order.

The end is told by the process's pidfd. While there is no process nothing tells of the next one: systemd is asked again, less
and less often.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import anyio

from supervisor.errors import SystemdRefused
from supervisor.fleet.systemctl import Systemctl, Unit

logger = logging.getLogger("chorus.supervisor")

LOOK_AGAIN = 0.02  # seconds until systemd is asked again, doubling: it has heard of an exit a moment after us
LOOK_SOON = 0.2  # at most, while systemd is about to do something
LOOK_EVERY = 5.0  # at most, while it is not: an operator may start what does not run
AT_REST = ("failed", "inactive")  # the ActiveState of a unit that systemd leaves as it is


class Lookout:
    """`report` is called with what was seen, and with how many orders had been given by then."""

    def __init__(self, name: str, systemd: Systemctl, report: Callable[[Unit, int], None]) -> None:
        self.name = name
        self.orders = 0
        self._systemd = systemd
        self._report = report
        self._ordered = anyio.Event()

    def ordered(self) -> None:
        """Something was asked of systemd: what comes of it is looked at from now on."""
        self.orders += 1
        self._ordered.set()
        self._ordered = anyio.Event()

    async def run(self) -> None:
        """Looks until cancelled. A process that runs is not asked after."""
        pause = LOOK_AGAIN
        over: int | None = None  # a process that has ended, of which systemd may not have heard
        while True:
            orders, ordered = self.orders, self._ordered
            most = LOOK_EVERY
            try:
                unit = await self._systemd.look(self.name)
            except SystemdRefused as error:
                logger.error("%s cannot be looked at: %s", self.name, error)
                pause = LOOK_EVERY
            else:
                self._report(unit, orders)
                if unit.pid is not None and unit.pid != over:
                    if await _ended(unit.pid, or_else=ordered):
                        over = unit.pid
                    pause = LOOK_AGAIN
                    continue
                if unit.is_busy or unit.active not in AT_REST:
                    most = LOOK_SOON
            with anyio.move_on_after(min(pause, most)) as patience:
                await ordered.wait()
            pause = min(pause * 2, LOOK_EVERY) if patience.cancelled_caught else LOOK_AGAIN


async def _ended(pid: int, or_else: anyio.Event) -> bool:
    """Returns when a process has ended, or something else has happened; says whether it has. Whoever its parent is."""
    try:
        end = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        async with anyio.create_task_group() as either:

            async def happened() -> None:
                await or_else.wait()
                either.cancel_scope.cancel()

            either.start_soon(happened)
            await anyio.wait_readable(end)
            either.cancel_scope.cancel()
            return True
        return False
    finally:
        os.close(end)
