"""The time between a failure and the next try. Nobody is left to wait behind the port for long: in a pause of more than a
second the supervisor itself accepts there and says when it is worth trying again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import anyio
import anyio.abc

from protocol.errors import Unavailable
from supervisor.fleet.link import Link
from supervisor.fleet.stand_in import stand_in

STAND_IN_AFTER = 1.0  # a wait longer than this is not left to the backlog
LEAST_WAIT = 0.1  # seconds; what a client is told at least


class Pause:
    """The pauses of one specialist, at most one at a time. Written by its keeper.

    `over` is called with the number of a pause whose time has passed; a pause that was ended is never over.
    """

    def __init__(self, name: str, ai_id: str, link: Link, over: Callable[[int], None]) -> None:
        self.name = name
        self.number = 0
        self._ai_id = ai_id
        self._link = link
        self._over = over
        self._due_at = 0.0
        self._why = ""
        self._scope: anyio.CancelScope | None = None

    def due_in(self) -> float:
        """Seconds until the next try; infinite when an operator has to ask for it."""
        return max(0.0, self._due_at - time.monotonic())

    def begin(self, group: anyio.abc.TaskGroup, delay: float | None, why: str) -> None:
        """Waits `delay` seconds in the keeper's own group, or for an operator where it is None."""
        self.end()
        self._why = why
        wait = delay if delay is not None else math.inf
        self._due_at = time.monotonic() + wait
        self._scope = anyio.CancelScope()
        group.start_soon(self._wait, self._scope, wait, self.number)

    def end(self) -> None:
        """The next try is made now, or none is wanted."""
        self.number += 1
        if self._scope is not None:
            self._scope.cancel()
            self._scope = None

    async def _wait(self, scope: anyio.CancelScope, wait: float, number: int) -> None:
        with scope:
            async with anyio.create_task_group() as both:
                if wait > STAND_IN_AFTER:
                    both.start_soon(self._stand_in)
                await anyio.sleep(wait)
                self._over(number)  # the stand-in goes on until the next process is started

    async def _stand_in(self) -> None:
        listeners = await self._link.lend(self.name)
        await stand_in(listeners, self._ai_id, self._unavailable)

    def _unavailable(self) -> Unavailable:
        wait = self.due_in()
        if math.isinf(wait):
            return Unavailable(f"{self.name} is not running: {self._why}; chorus start {self.name}")
        wait = max(LEAST_WAIT, wait)
        sentence = f"{self.name} is not running: {self._why}; try again in {wait:.0f} s, or see chorus status"
        return Unavailable(sentence, retry_after=round(wait, 1))
