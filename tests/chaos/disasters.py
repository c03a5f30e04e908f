"""The faults of the machine, of the supervisor and of the fork server, and those of many specialists at once.

Each returns the seconds until the team was whole again; None where nothing may be lost by it, or where it took too long.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from chaos import faults, sight
from chaos.faults import MACHINE_LATE, QUICKLY, Recovery, kill
from chaos.load import Ended, connected
from chaos.plan import Fault
from chaos.stage import SPARE, Stage

# Seconds.
TRIES_BLOCKED = 2.5  # the longest pause between two tries for something that the machine denies
SUSPENDED = 8.0
REPLACED_WITHIN = 15.0  # a fork server that is stopped, or killed


Way = Callable[[Stage, Fault], Awaitable[Recovery]]
AT_ONCE: list[Way] = [kill, faults.segv, faults.exit_0, faults.exit_1, faults.grandchild]


async def several(stage: Stage, fault: Fault) -> Recovery:
    """All at the same moment, each in a way of its own."""
    rng = random.Random(fault.chance)
    each = [rng.choice(AT_ONCE)(stage, Fault(fault.kind, (name,), 0.0, 0.0)) for name in fault.names]
    return max((took for took in await asyncio.gather(*each) if took is not None), default=None)


async def crash_loop(stage: Stage, fault: Fault) -> Recovery:
    """Killed as soon as it is there, until it has failed: said aloud, said to clients, and over when an operator asks."""
    [name] = fault.names
    with stage.dying(name):
        for _ in range(stage.settings.intensity + 1):
            seen = await stage.until(name, lambda one: one["pid"] is not None, 10.0, "tried again")
            os.kill(seen["pid"], signal.SIGKILL)
            await stage.until(name, lambda one, old=seen["pid"]: one["pid"] != old, 5.0, "rid of its pid")  # type: ignore[misc]
        await stage.until(name, lambda one: one["state"] == "failed", 5.0, "failed after its crash loop")
        try:
            async with asyncio.timeout(5), connected(stage.ports[name]) as client:
                await client.say('{"type":"chat","content":"hello","request_id":1}')
                await client.message()
            stage.complain(f"{name} has failed, and answers")
        except (Ended, TimeoutError) as end:
            if not isinstance(end, Ended) or end.what != "unavailable":
                stage.complain(f"{name} has failed, and its clients are told {end!r}")
        began = time.monotonic()
        done = await asyncio.to_thread(stage.team.run, "start", name)
        if done.returncode:
            stage.complain(f"`chorus start {name}` ended with {done.returncode}: {done.stderr}")
        return await stage.answered_by_another(name, 0, 5.0, began)


async def disk_full(stage: Stage, fault: Fault) -> Recovery:
    stage.machine.fill_the_disk()
    try:
        return await several(stage, Fault(fault.kind, fault.names, 0.0, fault.chance))
    finally:
        stage.machine.clear_the_disk()


async def fork_fails(stage: Stage, fault: Fault) -> Recovery:
    """For a while nobody can be replaced: they back off, say why, and are back by themselves when it is over."""
    before = {name: await stage.status(name) for name in fault.names}
    server = stage.fork_server()
    assert server is not None
    with stage.dying(*fault.names):
        stage.machine.forbid_forks(server)
        for one in sight.processes():
            if one.parent == server and one.words.startswith(SPARE):
                os.kill(one.pid, signal.SIGKILL)  # or the first of them would be forked already
        try:
            for one in before.values():
                os.kill(one["pid"], signal.SIGKILL)
            for name in fault.names:
                waiting = await stage.until(name, lambda one: one["state"] == "backing_off", 2.0, "backing off")
                if not waiting["last_error"]:
                    stage.complain(f"{name}: cannot be forked, and does not say why: {waiting}")
            await asyncio.sleep(4 * fault.chance)
        finally:
            stage.machine.allow_forks()
        began = time.monotonic()
        each = [
            stage.answered_by_another(name, one["pid"], TRIES_BLOCKED + QUICKLY, began) for name, one in before.items()
        ]
        return max((took for took in await asyncio.gather(*each) if took is not None), default=None)


async def clock_jumps(stage: Stage, fault: Fault) -> Recovery:
    """Up to a day back or ahead, for good; and somebody dies after it."""
    stage.machine.set_clock(int((fault.chance - 0.5) * 2 * 86_400))
    return await kill(stage, fault)


# -- the supervisor and the fork server -------------------------------------------------------------------------------------


Before = dict[str, dict[str, Any]]


async def _nobody_restarted(stage: Stage, before: Before, but: tuple[str, ...] = ()) -> None:
    """The same processes as before, and nobody the worse for it in the status."""
    for name, one in before.items():
        if name in but:
            continue
        seen = await stage.until(name, lambda now: now["state"] == "ready", 30.0, "ready")
        if seen["pid"] != one["pid"] or seen["restarts"] != one["restarts"]:
            stage.complain(
                f"{name}: pid {one['pid']} became {seen['pid']}, restarts {one['restarts']} became {seen['restarts']};"
                f" last exit: {seen['last_exit']}"
            )


async def supervisor_killed(stage: Stage, fault: Fault) -> Recovery:
    """At any instruction; sometimes while somebody is being replaced, sometimes somebody dies while it is away."""
    before = await stage.everybody()
    [name] = fault.names
    victim = await stage.before(name)
    what = fault.chance * 3
    with stage.dying(*([name] if what < 2 else [])):
        if what < 1:
            os.kill(victim.pid, signal.SIGKILL)
            await asyncio.sleep(0.02 * what)
        await _kill(stage.supervisor())
        if 1 <= what < 2:
            os.kill(victim.pid, signal.SIGKILL)
        await asyncio.sleep((what % 1) * 2)
        began = time.monotonic()
        await stage.start_supervisor()
        took = time.monotonic() - began
        if what < 2:
            await stage.answered_by_another(name, victim.pid, QUICKLY, time.monotonic())
            await stage.ended_as(victim, code=None, signal="SIGKILL", cause="killed by SIGKILL")
        await _nobody_restarted(stage, before, fault.names if what < 2 else ())
    return took


async def supervisor_stopped(stage: Stage, fault: Fault) -> Recovery:
    before = await stage.everybody()
    pid = stage.supervisor()
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(_suspension(stage))
    os.kill(pid, signal.SIGCONT)
    await asyncio.sleep(stage.settings.hung_after + stage.settings.health_period)
    await _nobody_restarted(stage, before)
    return None


async def suspended(stage: Stage, fault: Fault) -> Recovery:
    """A laptop that sleeps: everybody is stopped for a while, and goes on in any order."""
    before = await stage.everybody()
    everybody = [stage.supervisor(), stage.fork_server() or 0, *(one["pid"] for one in before.values())]
    random.Random(fault.chance).shuffle(everybody)
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(_suspension(stage))
    for pid in reversed(everybody):
        os.kill(pid, signal.SIGCONT)
    await asyncio.sleep(stage.settings.hung_after + stage.settings.health_period)
    await _nobody_restarted(stage, before)
    return None


async def fork_server_killed(stage: Stage, fault: Fault) -> Recovery:
    before = await stage.everybody()
    began = time.monotonic()
    old = stage.fork_server()
    assert old is not None
    await _kill(old)
    took = await _another_fork_server(stage, old, began)
    await _nobody_restarted(stage, before)
    await kill(stage, fault)
    return took


async def fork_server_stopped(stage: Stage, fault: Fault) -> Recovery:
    """It answers nobody any more: found by whoever needs it, and replaced."""
    before = await stage.everybody()
    victim = before[fault.names[0]]
    old = stage.fork_server()
    assert old is not None
    with stage.dying(*fault.names):
        began = time.monotonic()
        os.kill(old, signal.SIGSTOP)
        os.kill(victim["pid"], signal.SIGKILL)
        took = await _another_fork_server(stage, old, began)
        await stage.answered_by_another(fault.names[0], victim["pid"], QUICKLY + MACHINE_LATE, time.monotonic())
        await _nobody_restarted(stage, before, fault.names)
    return took


async def both_killed(stage: Stage, fault: Fault) -> Recovery:
    before = await stage.everybody()
    old = stage.fork_server()
    assert old is not None
    await asyncio.gather(_kill(stage.supervisor()), _kill(old))
    await asyncio.sleep(fault.chance)
    began = time.monotonic()
    await stage.start_supervisor()
    took = time.monotonic() - began
    await _nobody_restarted(stage, before)
    await kill(stage, fault)
    return took


async def _another_fork_server(stage: Stage, old: int, began: float) -> Recovery:
    deadline = began + REPLACED_WITHIN
    while (found := stage.fork_server()) in (None, old):
        if time.monotonic() > deadline:
            stage.complain(f"the fork server {old} was not replaced within {REPLACED_WITHIN:g} s: there is {found}")
            return None
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while sight.is_alive(pid):  # noqa: ASYNC110 - it is nobody's child here
        await asyncio.sleep(0.002)


def _suspension(stage: Stage) -> float:
    """Longer than a hang would take."""
    return SUSPENDED / 6 * stage.settings.hung_after


ALL: dict[str, Way] = {
    "kill": kill,
    "segv": faults.segv,
    "exit 0": faults.exit_0,
    "exit 1": faults.exit_1,
    "grandchild": faults.grandchild,
    "far grandchild": faults.far_grandchild,
    "stop": faults.stop,
    "spin": faults.spin,
    "blocked": faults.blocked,
    "deaf": faults.deaf,
    "descriptors": faults.out_of_descriptors,
    "several at once": several,
    "crash loop": crash_loop,
    "disk full": disk_full,
    "fork fails": fork_fails,
    "clock jumps": clock_jumps,
    "supervisor killed": supervisor_killed,
    "supervisor stopped": supervisor_stopped,
    "suspended": suspended,
    "fork server killed": fork_server_killed,
    "fork server stopped": fork_server_stopped,
    "both killed": both_killed,
}
