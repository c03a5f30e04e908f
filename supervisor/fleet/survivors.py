"""Specialists that cannot be taken on: they are asked to end, and what replaces them waits for their ports."""

from __future__ import annotations

import contextlib
import os
import signal

import anyio

from supervisor.fleet import pidfiles
from supervisor.fleet.calls import Process

LOOK_EVERY = 0.02  # seconds; they may be nobody's children here, so there is no exit to be told of
KILLED_WITHIN = 2.0  # seconds until the kernel has taken away what was killed


async def end(processes: list[Process], grace: float) -> None:
    """Asks them to end, and ends by force what does not within `grace` seconds. They stop accepting at once.

    What they had started is not left without them.
    """
    _send(processes, signal.SIGTERM)
    _send(processes, signal.SIGCONT)
    with anyio.move_on_after(grace):
        await _gone(processes)
    _send(processes, signal.SIGKILL)
    with anyio.move_on_after(KILLED_WITHIN):
        await _gone(processes)
    for process in processes:
        if pidfiles.ticks_of(process.pid) is None:  # or else the number is somebody's again
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def _send(processes: list[Process], number: int) -> None:
    for process in processes:
        try:
            if pidfiles.is_alive(process):
                os.kill(process.pid, number)
        except ProcessLookupError:
            pass  # it ended in the meantime


async def _gone(processes: list[Process]) -> None:
    while any(pidfiles.is_alive(process) for process in processes):  # noqa: ASYNC110 - there is no event
        await anyio.sleep(LOOK_EVERY)
