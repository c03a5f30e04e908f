"""The keeper itself, under a virtual clock, with processes that crash, hang, resist and cannot be started, in any order."""

from __future__ import annotations

import asyncio
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from keeping import BACKEND, specialist
from scripted_fleet import GOES_WITHIN, Scripted, ScriptedLink
from virtual import VirtualLoop

from protocol.control import SpecialistStatus
from protocol.settings import Supervision
from supervisor.fleet import health
from supervisor.fleet.calls import fingerprint
from supervisor.fleet.inbox import Adopted, Command
from supervisor.fleet.keeper import Keeper
from supervisor.fleet.lifecycle import ANSWERING, RUNNING, State, Wanted
from supervisor.fleet.processes import END_MARGIN
from supervisor.fleet.registry import Registry
from supervisor.fleet.restart import FORGIVEN_AFTER, JITTER, RETRY_FAILED_AFTER

NAME = "apollo"
SETTINGS = Supervision(grace=2.0)
PATIENT = 30.0  # seconds, the longest grace that an operator gives here
AGAIN_WITHIN = RETRY_FAILED_AFTER * (1 + JITTER) + health.START_WITHIN + SETTINGS.hung_after  # the slowest way back


async def _here(work: Callable[..., Any], *args: Any) -> Any:
    """Instead of a thread, whose time is not virtual."""
    return work(*args)


class OneKeeper(RuleBasedStateMachine):
    """An operator and a world, each doing anything at any time."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._patched = pytest.MonkeyPatch()
        self.loop = VirtualLoop()
        self.logged: list[logging.LogRecord] = []
        self._listener = logging.Handler()
        self._listener.emit = self.logged.append  # type: ignore[method-assign,assignment]
        logging.getLogger("chorus.supervisor").addHandler(self._listener)
        self._patched.setattr(time, "monotonic", self.loop.time)
        self._patched.setattr(anyio.to_thread, "run_sync", _here)
        self.wanted = Wanted.DOWN
        self.asked_at = -math.inf  # when an operator asked for something last
        self.loop.run(self._begin())

    async def _begin(self) -> None:
        folder = Path(self._folder.name)
        self.config = specialist(folder, NAME, grace=SETTINGS.grace)
        self.link = ScriptedLink(NAME, lambda exit_: self.keeper.tell(exit_))  # noqa: PLW0108 - it comes later
        self._patched.setattr(health, "watch", self.link.watch)
        await self._keep()

    async def _keep(self) -> None:
        """A supervisor begins to keep the specialist."""
        folder, config = Path(self._folder.name), self.config
        entry = SpecialistStatus(
            name=NAME,
            ai_id=config.ai_id,
            host="127.0.0.1",
            port=config.port,
            state="stopped",
            wanted=self.wanted.value,
        )
        self.registry = Registry(folder / "registry.json", [entry], BACKEND)
        link: Any = self.link
        self.keeper = Keeper(config, SETTINGS, link, self.registry, anyio.CapacityLimiter(3), lambda *_: None)
        self._task = asyncio.get_running_loop().create_task(self.keeper.run())

    def _end_keeper(self) -> None:
        self._task.cancel()
        self.loop.run(asyncio.wait([self._task]))
        self.registry.events.close()

    def teardown(self) -> None:
        self._end_keeper()
        self.loop.close()
        self._patched.undo()
        logging.getLogger("chorus.supervisor").removeHandler(self._listener)
        self._folder.cleanup()

    @property
    def process(self) -> Scripted | None:
        return self.link.living.get(self.keeper.pid or 0)

    def ask(self, verb: Any, grace: float | None = None) -> None:
        self.asked_at = time.monotonic()
        self.keeper.tell(Command(verb, "asked", grace))
        self.loop.pass_time(0.001)

    # -- the operator ---------------------------------------------------------------------------------------------------------

    @rule()
    def start(self) -> None:
        self.wanted = Wanted.UP
        self.ask("start")

    @rule(grace=st.sampled_from([None, 0.0, 0.5, PATIENT]))
    def stop(self, grace: float | None) -> None:
        self.wanted = Wanted.DOWN
        self.ask("stop", grace)

    @rule()
    def restart(self) -> None:
        self.wanted = Wanted.UP
        self.ask("restart")

    @rule()
    def drain(self) -> None:
        if self.wanted is not Wanted.DOWN:
            self.wanted = Wanted.DRAINED
        self.ask("drain")

    # -- the world ------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.process is not None)
    @rule(code=st.sampled_from([0, 1, None]))
    def it_ends(self, code: int | None) -> None:
        assert self.keeper.pid is not None
        self.link.end(self.keeper.pid, code, None if code is not None else 11)
        self.loop.pass_time(0.001)

    @precondition(lambda self: self.process is not None)
    @rule()
    def it_falls_silent(self) -> None:
        assert self.process is not None
        self.process.answers = self.process.obeys = False

    @precondition(lambda self: self.process is not None)
    @rule()
    def it_wakes(self) -> None:
        assert self.process is not None
        self.process.answers = self.process.obeys = True

    @rule(obeys=st.booleans(), answers=st.sampled_from([True, True, False]))
    def new_ones_are_so(self, obeys: bool, answers: bool) -> None:
        self.link.obeys, self.link.answers = obeys, answers

    @rule(can=st.booleans())
    def forks_go_well(self, can: bool) -> None:
        self.link.can_fork = can

    @rule(up=st.booleans())
    def the_model_server_answers(self, up: bool) -> None:
        self.link.backend = "ready" if up else "down"

    @rule(seconds=st.sampled_from([0.05, 0.5, 3.0, 11.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.pass_time(seconds)

    @rule()
    def another_supervisor_takes_over(self) -> None:
        """It is told what lives, and then what is wanted of it: as `Tenure` does."""
        wanted, self.asked_at = self.wanted, time.monotonic()
        self._end_keeper()
        self.loop.run(self._keep())
        for one in self.link.living.values():
            self.keeper.tell(Adopted(one.told(NAME, fingerprint(self.config))))
        is_alive = any(not one.is_asked for one in self.link.living.values())
        if is_alive and wanted is Wanted.DOWN:
            self.keeper.tell(Command("stop", "was to be stopped"))
        elif is_alive and wanted is Wanted.DRAINED:
            self.keeper.tell(Command("drain", "was drained before"))
        elif any(one.draining and not one.is_asked for one in self.link.living.values()):
            self.keeper.tell(Command("start", "was asked for while no new process could be started"))
        elif not is_alive and wanted is not Wanted.DOWN:
            self.keeper.tell(Command("start", "the team was started"))
            if wanted is Wanted.DRAINED:
                self.keeper.tell(Command("drain", "was drained before"))
        self.loop.pass_time(0.001)

    # -- what always holds ----------------------------------------------------------------------------------------------------

    @invariant()
    def nothing_came_that_cannot(self) -> None:
        assert [one.getMessage() for one in self.logged if one.exc_info] == []
        assert not self._task.done()

    @invariant()
    def wanted_is_what_was_asked(self) -> None:
        assert self.keeper.wanted is self.wanted
        assert self.registry[NAME].wanted == self.wanted.value

    @invariant()
    def at_most_one_process_is_not_on_its_way_out(self) -> None:
        assert {one.pid for one in self.link.living.values() if not one.is_asked} <= {self.keeper.pid}

    @invariant()
    def state_and_process_agree(self) -> None:
        has_process = self.keeper.pid in self.link.living
        assert has_process is (self.keeper.state in RUNNING or self.keeper.state is State.STOPPING)
        assert self.registry[NAME].state == self.keeper.state.value
        assert self.registry[NAME].pid == self.keeper.pid
        assert self.link.living.keys() - {self.keeper.pid} == self.keeper.replaced

    @invariant()
    def whoever_waits_has_a_next_try(self) -> None:
        if self.keeper.state in (State.BACKING_OFF, State.FAILED):
            assert self.keeper.due_in() <= RETRY_FAILED_AFTER * (1 + JITTER)

    @invariant()
    def restarts_are_not_a_storm(self) -> None:
        """In the time that forgives, when nobody asks: no more than intensity, and one for the edge of the window."""
        by_themselves = [at for at in self.link.forks if at > self.asked_at + GOES_WITHIN]
        for at in by_themselves:
            assert sum(at - FORGIVEN_AFTER < other <= at for other in by_themselves) <= SETTINGS.intensity + 1

    # -- what comes about in the end ----------------------------------------------------------------------------------------

    @rule()
    def a_stop_always_ends(self) -> None:
        self.stop(None)
        self.loop.pass_time(PATIENT + END_MARGIN + 1.0)
        assert self.keeper.is_gone
        assert not self.link.living
        assert self.link.is_released

    @precondition(lambda self: self.wanted is not Wanted.DOWN)
    @rule()
    def a_good_world_makes_it_whole(self) -> None:
        self.link.can_fork = self.link.answers = self.link.obeys = True
        self.loop.pass_time(AGAIN_WITHIN)
        expected = ANSWERING if self.wanted is Wanted.UP else {State.DRAINING}
        assert self.keeper.state in expected
        assert self.process is not None
        assert self.process.draining is (self.wanted is Wanted.DRAINED)


TestOneKeeper = OneKeeper.TestCase
TestOneKeeper.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


@pytest.fixture
def one() -> Iterator[OneKeeper]:
    machine = OneKeeper()
    machine.start()
    machine.time_passes(1.0)
    yield machine
    machine.teardown()


def test_a_drained_one_that_is_asked_for_while_nothing_can_be_forked_is_replaced_later(one: OneKeeper) -> None:
    one.drain()
    one.forks_go_well(can=False)
    one.restart()
    one.time_passes(11.0)
    assert one.keeper.state is State.DRAINING
    one.a_good_world_makes_it_whole()


def test_tries_that_the_machine_denied_are_not_held_against_it(one: OneKeeper) -> None:
    one.forks_go_well(can=False)
    one.it_ends(1)
    one.time_passes(11.0)
    one.forks_go_well(can=True)
    one.time_passes(3.0)
    assert one.keeper.state is State.READY
    one.it_ends(1)
    one.time_passes(0.5)
    assert one.keeper.state is State.READY
