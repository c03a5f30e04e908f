"""A specialist run for a moment in the fork server, before anything is forked.

The first run of code writes to memory: the interpreter specialises the bytecode in place, caches are filled, objects are made
that stay. Written before the fork it is written once and shared by all children; written after it, each has pages of its own.
"""

from __future__ import annotations

import asyncio
import threading

import anyio

from daemon import listen
from daemon.backends.open import open_backend
from daemon.server import Server
from daemon.specialist import Specialist
from protocol.settings import Backend, Limits, SpecialistConfig

ROUNDS = 10  # the interpreter specialises code that has run eight times
NOWHERE = "http://127.0.0.1:0"  # a model server that refuses at once; nothing leaves the process

# What pymalloc hands out from holes in shared pages is written there, one page for each; with the holes filled, what a child
# allocates lies together in pages of its own. Sizes are pymalloc's classes, counts were enough for what imports leave behind.
SMALL, LARGE, STEP = 128, 512, 16
FILL_SMALL, FILL_LARGE = 600, 100
_BYTES_OVERHEAD = 33


def rehearse(rounds: int = ROUNDS) -> None:
    """Runs through a specialist's start and so many health checks.

    Leaves no thread, no socket and no event loop behind.
    """
    anyio.run(_rehearse, rounds)
    assert threading.active_count() == 1, "a fork would lose the others"


def fill_holes() -> list[object]:
    """What must be kept so that the holes that the allocator has by now stay filled."""
    return [
        bytes(size - _BYTES_OVERHEAD)
        for size in range(3 * STEP, LARGE + 1, STEP)
        for _ in range(FILL_SMALL if size <= SMALL else FILL_LARGE)
    ]


async def _rehearse(rounds: int) -> None:
    config = SpecialistConfig(
        name="rehearsal",
        addresses=["127.0.0.1"],
        port=0,
        role="",
        persona="",
        description="",
        capabilities=[],
        model=None,
        backend=Backend(kind="ollama"),
        url=NOWHERE,
        url_asked_for=True,
        api_key=None,
        options={},
        limits=Limits(),
        grace=0.0,
        retention_days=1.0,
        allowed_uids=[],
        data_dir="",
        state_dir="",
    )
    specialist = Specialist(config, open_backend(config))
    stop = anyio.Event()
    listeners = listen.bind(config.places)
    port = listeners[0].getsockname()[1]
    with anyio.move_on_after(1.0):
        async with anyio.create_task_group() as house:
            await house.start(specialist.run)
            house.start_soon(Server(specialist).serve, listeners, stop, 0.0)
            reader, writer = await asyncio.open_connection(config.addresses[0], port)
            for _ in range(rounds):
                writer.write(b'{"type":"health","request_id":1}\n')
                await reader.readline()
            writer.close()
            house.cancel_scope.cancel()
    for listener in listeners:
        listener.close()
