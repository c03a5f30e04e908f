"""When a backend looks at its model server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from lookalikes.asking import until

from daemon.backends.rhythm import Rhythm
from daemon.backends.watching import Watch


class Looks:
    """Counts them, with their times."""

    def __init__(self) -> None:
        self.at: list[float] = []

    async def look(self) -> None:
        self.at.append(asyncio.get_running_loop().time())


@asynccontextmanager
async def watching(looks: Looks, rhythm: Rhythm) -> AsyncGenerator[Watch, None]:
    watch = Watch(looks.look, rhythm)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        yield watch
        tasks.cancel_scope.cancel()


async def test_it_looks_at_once_and_then_now_and_then() -> None:
    looks = Looks()
    with anyio.fail_after(5):
        async with watching(looks, Rhythm(look=0.02, look_again=0.0)):
            await until(lambda: len(looks.at) == 3)
    assert looks.at[2] - looks.at[0] >= 0.04


async def test_asked_to_it_looks_before_its_time() -> None:
    looks = Looks()
    with anyio.fail_after(5):
        async with watching(looks, Rhythm(look=600.0, look_again=0.0)) as watch:
            await until(lambda: looks.at)
            watch.ask()
            await until(lambda: len(looks.at) == 2)


async def test_however_often_it_is_asked_there_is_a_pause_between_looks() -> None:
    looks = Looks()
    with anyio.fail_after(5):
        async with watching(looks, Rhythm(look=600.0, look_again=0.03)) as watch:
            while len(looks.at) < 3:
                watch.ask()
                await anyio.lowlevel.checkpoint()
    assert min(after - before for before, after in zip(looks.at, looks.at[1:], strict=False)) >= 0.029


async def test_a_fresh_look_is_not_repeated() -> None:
    looks = Looks()
    with anyio.fail_after(5):
        async with watching(looks, Rhythm(look=600.0, look_again=60.0)) as watch:
            await watch.fresh()
            await watch.fresh()
    assert len(looks.at) == 1
