"""A backend as a test asks it: a configuration with sensible values, a running backend, its steps taken apart."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import msgspec

from daemon.backends import Backend as AnyBackend
from daemon.backends import Finish, Piece, Prompt, Step
from daemon.backends.rhythm import Rhythm
from protocol.messages import Options, Turn
from protocol.settings import Backend, Limits, SpecialistConfig

B = TypeVar("B", bound=AnyBackend)

# Short where something has to come about, long where a busy machine is to be waited for. The others are for tests of what
# happens when a wait is over.
QUICK = Rhythm(quiet=60.0, look_again=0.01, probe=0.01, after_finish=60.0)
TALKATIVE = msgspec.structs.replace(QUICK, quiet=0.02)
FOLLOWING = msgspec.structs.replace(QUICK, look=0.05)
HASTY = msgspec.structs.replace(QUICK, after_finish=0.5)


def config_for(url: str, state: Path, **changes: Any) -> SpecialistConfig:
    """The configuration of one specialist; `options`, `pace` and `kind` go where they belong in [backend]."""
    of_backend = {key: changes.pop(key) for key in ("kind", "pace") if key in changes}
    profile = changes.pop("profile", {})
    limits = {key: changes.pop(key) for key in ("first_byte", "silence", "answer_tokens") if key in changes}
    plain = SpecialistConfig(
        name="apollo",
        addresses=["127.0.0.1"],
        port=45012,
        persona="You are Apollo.",
        description="",
        capabilities=[],
        model=None,
        backend=Backend(options=profile, **of_backend),
        url=url,
        url_asked_for=False,
        api_key=None,
        options={},
        limits=Limits(**limits),
        grace=1.0,
        retention_days=1.0,
        allowed_uids=[],
        data_dir=str(state),
        state_dir=str(state),
    )
    return msgspec.structs.replace(plain, **changes)


def question(content: str = "Why?", *earlier: Turn, system: str = "You are Apollo.", **options: Any) -> Prompt:
    return Prompt(system, [*earlier, Turn("user", content)], Options(**options))


@asynccontextmanager
async def running(backend: B) -> AsyncGenerator[B, None]:
    """The backend with its run() under way."""
    async with anyio.create_task_group() as tasks:
        await tasks.start(backend.run)
        yield backend
        tasks.cancel_scope.cancel()


async def steps_of(backend: AnyBackend, prompt: Prompt | None = None) -> list[Step]:
    return [step async for step in backend.generate(prompt or question())]


async def text_of(backend: AnyBackend, prompt: Prompt | None = None) -> str:
    return content(await steps_of(backend, prompt))


def content(steps: list[Step]) -> str:
    return "".join(step.content for step in steps if isinstance(step, Piece))


def thinking(steps: list[Step]) -> str:
    return "".join(step.thinking for step in steps if isinstance(step, Piece))


def finish(steps: list[Step]) -> Finish:
    last = steps[-1]
    assert isinstance(last, Finish)
    return last


async def until(condition: Callable[[], object]) -> None:
    """Lets the others run until something holds; the deadline is the test's."""
    while not condition():
        await anyio.lowlevel.checkpoint()
