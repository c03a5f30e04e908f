"""Specialists whose fork server is gone. They are recognised and asked to end; what replaces them waits for their ports.

A number in a journal proves nothing: it may be anybody's by now. The process must bear the title that only ours have.
"""

from __future__ import annotations

import os
import signal

import anyio
import psutil

from protocol.control import SpecialistStatus
from supervisor.fleet.calls import title

LOOK_EVERY = 0.02  # seconds; they are nobody's children here, so there is no exit to be told of
KILLED_WITHIN = 2.0  # seconds until the kernel has taken away what was killed


def find(specialists: list[SpecialistStatus]) -> list[psutil.Process]:
    """The processes of these entries that still live. psutil signals none whose number went to somebody else."""
    found = []
    for one in specialists:
        if one.pid is None:
            continue
        try:
            process = psutil.Process(one.pid)
            words = process.cmdline()
            if words and words[0].rstrip() == title(one.name, one.port) and process.uids().real == os.getuid():
                found.append(process)
        except psutil.Error:
            continue
    return found


async def end(processes: list[psutil.Process], grace: float) -> None:
    """Asks them to end, and ends by force what does not within `grace` seconds. They stop accepting at once."""
    send(processes, signal.SIGTERM)
    send(processes, signal.SIGCONT)
    with anyio.move_on_after(grace):
        await _gone(processes)
        return
    send(processes, signal.SIGKILL)
    with anyio.move_on_after(KILLED_WITHIN):
        await _gone(processes)


def send(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            pass  # it ended in the meantime


async def _gone(processes: list[psutil.Process]) -> None:
    while any(_lives(process) for process in processes):  # noqa: ASYNC110 - there is no event
        await anyio.sleep(LOOK_EVERY)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
