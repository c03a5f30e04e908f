"""The faults of one specialist: how each is done, and what has to become of it.

Each returns the seconds until the new process answered; None when it did not in time, which is complained of.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

from chaos import sight
from chaos.plan import Fault
from chaos.stage import Stage

# Seconds. A new process answers milliseconds after a death; the rest is a machine with two processors and its load.
QUICKLY = 1.0
MACHINE_LATE = 1.0
STACKS = 0.5
GONE_WITHIN = 5.0

Recovery = float | None


def hung_within(stage: Stage) -> float:
    """Seconds until a process that does not answer any more has been replaced: 8, and the restart, by default.

    Also one that answers old connections and takes no new ones, since somebody waits at its door.
    """
    return stage.settings.hung_after + stage.settings.health_period + STACKS + MACHINE_LATE


async def _die(
    stage: Stage,
    name: str,
    inject: Callable[[int], None],
    within: float,
    code: int | None,
    sign: str | None,
    cause: str,
) -> Recovery:
    before = await stage.before(name)
    with stage.dying(name):
        began = time.monotonic()
        inject(before.pid)
        took = await stage.answered_by_another(name, before.pid, within, began)
        await stage.ended_as(before, code=code, signal=sign, cause=cause)
    return took


async def _signalled(stage: Stage, fault: Fault, number: signal.Signals) -> Recovery:
    def inject(pid: int) -> None:
        os.kill(pid, number)

    return await _die(stage, fault.names[0], inject, QUICKLY, None, number.name, f"killed by {number.name}")


async def kill(stage: Stage, fault: Fault) -> Recovery:
    return await _signalled(stage, fault, signal.SIGKILL)


async def segv(stage: Stage, fault: Fault) -> Recovery:
    return await _signalled(stage, fault, signal.SIGSEGV)


async def _exits(stage: Stage, fault: Fault, what: str, code: int) -> Recovery:
    def inject(pid: int) -> None:
        stage.order(pid, what)

    return await _die(stage, fault.names[0], inject, QUICKLY, code, None, f"exited with code {code}")


async def exit_0(stage: Stage, fault: Fault) -> Recovery:
    return await _exits(stage, fault, "exit0", 0)


async def exit_1(stage: Stage, fault: Fault) -> Recovery:
    return await _exits(stage, fault, "exit1", 1)


async def grandchild(stage: Stage, fault: Fault) -> Recovery:
    """It ends, and what it had started holds its standard output: gone with it, being of its group."""
    pid = (await stage.status(fault.names[0]))["pid"]
    took = await _exits(stage, fault, "grandchild", 1)
    left = int((stage.orders / f"{pid}.grandchild").read_text())
    deadline = time.monotonic() + GONE_WITHIN
    while sight.is_alive(left):
        if time.monotonic() > deadline:
            stage.complain(f"{fault.names[0]}: what it had started in its group, pid {left}, outlived it")
            os.kill(left, signal.SIGKILL)
            break
        await asyncio.sleep(0.02)
    return took


async def far_grandchild(stage: Stage, fault: Fault) -> Recovery:
    """The same in a session of its own: nobody finds it, and nothing may wait for it."""
    pid = (await stage.status(fault.names[0]))["pid"]
    took = await _exits(stage, fault, "far_grandchild", 1)
    os.kill(int((stage.orders / f"{pid}.grandchild").read_text()), signal.SIGKILL)
    return took


async def _hangs(stage: Stage, fault: Fault, inject: Callable[[int], None], within: float) -> Recovery:
    name = fault.names[0]
    raw = stage.machine.logs / f"{name}.out"
    written = raw.stat().st_size if raw.exists() else 0
    took = await _die(stage, name, inject, within, None, "SIGKILL", "hung")
    with raw.open("rb") as output:
        output.seek(written if raw.stat().st_size >= written else 0)
        if b"most recent call first" not in output.read():
            stage.complain(f"{name}: hung, and its stacks are not in {raw.name}")
    return took


async def stop(stage: Stage, fault: Fault) -> Recovery:
    def inject(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)

    return await _hangs(stage, fault, inject, hung_within(stage))


async def _hangs_by_order(stage: Stage, fault: Fault, what: str, within: float) -> Recovery:
    def inject(pid: int) -> None:
        stage.order(pid, what)

    return await _hangs(stage, fault, inject, within)


async def spin(stage: Stage, fault: Fault) -> Recovery:
    return await _hangs_by_order(stage, fault, "spin", hung_within(stage))


async def blocked(stage: Stage, fault: Fault) -> Recovery:
    return await _hangs_by_order(stage, fault, "block", hung_within(stage))


async def deaf(stage: Stage, fault: Fault) -> Recovery:
    return await _hangs_by_order(stage, fault, "deaf", hung_within(stage))


async def out_of_descriptors(stage: Stage, fault: Fault) -> Recovery:
    return await _hangs_by_order(stage, fault, "descriptors", hung_within(stage))
