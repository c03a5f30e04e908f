"""One task for each specialist: it alone decides what becomes of it.

Everything that happens to a specialist comes in through one inbox: what operators ask, exits reported by the fork server,
verdicts of the health checks, timers. So no lock is needed, commands are idempotent, and a command during a crash loop or in
the middle of a stop needs no special case.
"""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
from msgspec.structs import replace

from protocol.control import AS_ASKED, BackendStatus
from protocol.messages import HealthResponse
from protocol.settings import ChildConfig, SpecialistConfig, Supervision
from supervisor.errors import CannotStart
from supervisor.fleet import ending, health, obstacle, processes, restart
from supervisor.fleet.calls import Exited, Process, fingerprint
from supervisor.fleet.health import Silent, Watching
from supervisor.fleet.inbox import Adopted, Command, Due, Happening, Heard, Inbox, KeptDown, Reconfigured
from supervisor.fleet.lifecycle import ANSWERING, RUNNING, Event, ImpossibleStep, State, Wanted, next_state
from supervisor.fleet.link import Link
from supervisor.fleet.memory import Ceiling
from supervisor.fleet.pause import Pause
from supervisor.fleet.processes import Processes, is_ours
from supervisor.fleet.registry import Registry, told_of

logger = logging.getLogger("chorus.supervisor")


class Keeper:
    """Keeps one specialist as it is wanted. The only writer of its entry in the registry.

    `config` and `settings` are as an operator wants them. `brake` limits how many hung processes of the whole fleet are ended
    at the same time.
    """

    def __init__(
        self,
        config: ChildConfig,
        settings: Supervision,
        link: Link,
        registry: Registry,
        brake: anyio.CapacityLimiter,
        mark: Callable[[str, str], None],
    ) -> None:
        self.config = config
        self.name = config.name
        self.settings = settings
        self.link = link
        self.registry = registry
        self.state = State.STOPPED
        self.wanted = Wanted.DOWN
        self.inbox = Inbox(config.name)
        self._brake = brake
        self._mark = mark
        self._record = restart.Record()
        self._ceiling = Ceiling()
        self._not_replaced: str | None = None  # why there is no successor that was asked for
        self._processes = Processes(config.name, link, mark)
        self._watching = Watching(
            lambda pid, verdict: self.tell(Heard(pid, verdict)), lambda: link.copies.is_waited_for(config.name)
        )
        self._pause = Pause(config.name, config.ai_id, link, lambda number: self.tell(Due(number)))

    @property
    def pid(self) -> int | None:
        """The process that has the place; predecessors may live besides."""
        return self._processes.pid

    @property
    def running(self) -> ChildConfig | None:
        """What that process was started with."""
        return self._processes.running

    @property
    def replaced(self) -> set[int]:
        """Predecessors that finish what they have under way."""
        return self._processes.replaced

    @property
    def is_gone(self) -> bool:
        """No process of this name lives."""
        return self.state is State.STOPPED and self.pid is None and not self.replaced

    def tell(self, happening: Happening, *, urgent: bool = False) -> None:
        """Something happened. Never waits; raises Busy for a command when hundreds wait already and it is not urgent."""
        self.inbox.put(happening, urgent=urgent)

    def due_in(self) -> float:
        """Seconds until the next try, while it is backing off or failed."""
        return self._pause.due_in()

    def note_missed(self, exit_: Exited, when: str) -> None:
        """A process ended while nobody could be told of it: said in the log, in the events and in the status, and counted."""
        cause = f"{ending.sentence(exit_)} while {when}" + (", as asked" if exit_.asked else "")
        self._mark(self.name, f"pid {exit_.pid} {cause}")
        last = ending.last_exit(exit_, AS_ASKED if exit_.asked else cause)
        is_restart = not exit_.asked and not restart.is_kept_down(self.settings.restart, exit_.code)
        restarts = self.registry[self.name].restarts + is_restart
        self.registry.move(self.name, self.state.value, cause, old_pid=exit_.pid, restarts=restarts, last_exit=last)

    async def run(self) -> None:
        """Lives until cancelled. Processes outlive it."""
        try:
            async with anyio.create_task_group() as self._group, aclosing(self.inbox.happenings()) as happenings:
                async for happening in happenings:
                    try:
                        await self._handle(happening)
                    except ImpossibleStep:
                        # Our mistake, and one specialist's trouble: the other seventeen are kept on.
                        logger.exception("%s: an event came that cannot", self.name)
        finally:
            self.inbox.close()

    async def _note_end(self, pid: int) -> None:
        """Nobody else is to be told of an end, as soon as a later supervisor would know of it."""
        await self.registry.journalled()
        await self.link.noted(pid)

    def dismiss(self) -> None:
        """Ends the keeping of a name that is no more: no process of it lives."""
        self._group.cancel_scope.cancel()

    async def _handle(self, happening: Happening) -> None:
        match happening:
            case Command(verb="start"):
                await self._start(happening.cause)
            case Command(verb="stop"):
                await self._stop(happening.cause, happening.grace)
            case Command(verb="restart"):
                await self._restart(happening.cause)
            case Command(verb="drain"):
                await self._drain(happening.cause)
            case Exited():
                await self._exited(happening)
                self._group.start_soon(self._note_end, happening.pid)
            case Heard():
                await self._heard(happening)
            case Due():
                if happening.number == self._pause.number and self.state in (State.BACKING_OFF, State.FAILED):
                    await self._launch(f"tried again after: {self.registry[self.name].last_error}")
            case Adopted():
                await self._adopt(happening.process)
            case KeptDown():
                self.wanted = Wanted(self.registry[self.name].wanted)
                self._keep_down(happening.cause)
            case Reconfigured():
                await self._reconfigure(happening)

    # -- what is asked ------------------------------------------------------------------------------------------------------

    async def _start(self, cause: str) -> None:
        was = self.wanted
        self._want(Wanted.UP)
        self._record = restart.Record()  # nothing is held against it
        if was is Wanted.DRAINED and self.pid is not None:
            await self._restart(cause)
        elif self.state not in RUNNING and self.state is not State.STOPPING:
            await self._launch(cause)  # while it is stopping its port is not free: its end starts it again

    async def _stop(self, cause: str, grace: float | None) -> None:
        self._want(Wanted.DOWN)
        self._pause.end()
        await self.link.release(self.name)
        if self.state in RUNNING:
            assert self.pid is not None
            self._step(Event.STOP, cause)
            self._watching.end()
            await self._processes.end(self._group, self.settings.grace if grace is None else grace)
        elif self.state is State.STOPPING and self.pid is not None and grace is not None:
            await self._processes.allow(self._group, self.pid, grace)  # it was asked before, with other patience
        elif self.state in (State.BACKING_OFF, State.FAILED):
            self._step(Event.ABANDONED, cause)
        if grace is not None:
            for pid in self.replaced:
                await self._processes.allow(self._group, pid, grace)

    async def _restart(self, cause: str) -> None:
        self._want(Wanted.UP)
        self._record = restart.Record()  # nothing is held against it
        if self.state is State.STOPPING:
            return
        await self._succeed(cause)

    async def _succeed(self, cause: str, **fields: Any) -> None:
        """A successor accepts on the same listener before the old one stops: nobody waits."""
        old = self.pid
        await self._launch(cause, **fields)
        if old is not None and old != self.pid:
            await self._processes.retire(self._group, old, self.settings.grace)

    async def _drain(self, cause: str) -> None:
        if self.wanted is not Wanted.DOWN and is_ours(self.config):
            self._want(Wanted.DRAINED)  # whoever does not run at this moment is drained as soon as it does
            if self.state in ANSWERING:
                await self._refuse_new(cause)

    async def _refuse_new(self, cause: str) -> None:
        """Only for a process that has answered: before that, the signal would end it."""
        assert self.pid is not None
        await self.link.signal(self.pid, signal.SIGUSR1)
        self._step(Event.DRAIN, cause)

    async def _reconfigure(self, new: Reconfigured) -> None:
        """A process is replaced only where it is to be told something new; the rest is ours and counts from now on."""
        before, self.config, self.settings = self.settings, new.config, new.settings
        if self.wanted is Wanted.DOWN:
            self.registry.note(self.name, **told_of(self.config))
        elif new.changed and self.wanted is Wanted.UP:  # a drained one takes it over at its next start
            if new.lets_go and self.pid is not None and self.state in RUNNING:
                await self._let_go(self.pid)
            await self._restart(f"its configuration has changed: {', '.join(new.changed)}")
        elif self.pid is not None and self.state in RUNNING and before != new.settings:
            self._watch()

    async def _let_go(self, pid: int) -> None:
        """Who holds the next port may be waiting for this one: it is given back before there is a successor."""
        self._watching.end()
        self._processes.leave()
        await self.link.release(self.name)
        await self._processes.retire(self._group, pid, self.settings.grace)

    def _want(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.registry.want(self.name, wanted.value)

    # -- starting and ending -------------------------------------------------------------------------------------------------

    async def _launch(self, cause: str, **fields: Any) -> None:
        """Starts a process, on its port."""
        self._pause.end()
        config = self.config
        try:
            pid = await self.link.fork(config)
        except CannotStart as error:
            fact, remedy = await anyio.to_thread.run_sync(obstacle.told, error, config)
            if self.registry[self.name].last_error != fact:
                self._mark(self.name, f"cannot be {'started' if self.pid is None else 'replaced'}: {fact}; {remedy}")
            if self.pid is None:
                self._blocked(fact, remedy)
            else:  # no successor is no reason to lose what runs
                self.registry.note(self.name, last_error=fact, remedy=remedy)
                self._not_replaced = f"could not be replaced, and runs as it was started: {fact}  do: {remedy}"
            return
        self._processes.take(pid, config, time.monotonic())
        self._ceiling.begin()
        self._not_replaced = None
        fields |= {"last_error": None, "remedy": None, "notice": None, "started_because": cause, "has_port": True}
        self._step(Event.FORKED, cause, pid=pid, uptime=time.time(), **told_of(self.config), **fields)
        self._mark(self.name, f"started, pid {pid}: {cause}")
        self._watch()

    def _blocked(self, fact: str, remedy: str) -> None:
        """The machine does not give what a process needs. That is nobody's crash, and it is looked for often."""
        self._record = restart.blocked(self._record)
        delay = restart.blocked_delay(self._record, random.random())
        has_port = bool(self.link.copies.of(self.name))
        said = {"next_due": time.time() + delay, "last_error": fact, "remedy": remedy, "has_port": has_port}
        self._step(Event.BLOCKED, fact, pid=None, uptime=None, **told_of(self.config), **said)
        self._pause.begin(self._group, delay, fact)

    async def _adopt(self, found: Process) -> None:
        if found.stopping:
            # It was asked to end, by a stop or a restart; to ask again would cut its answers short.
            self.replaced.add(found.pid)
            await self._processes.allow(self._group, found.pid, self.settings.grace)
            return
        if self.pid is not None:
            # Two of one name: a restart was under way when the last supervisor died. The newer one stays.
            await self._processes.retire(self._group, self.pid, self.settings.grace)
        self._want(Wanted.DRAINED if found.draining else Wanted.UP)
        running = self.config.elsewhere(found.places or self.config.places)
        running = replace(running, grace=0.0)  # nobody says what grace it was given
        self._processes.take(found.pid, running, time.monotonic() - max(0.0, time.time() - found.started))
        cause = "was running before this supervisor"
        self._step(Event.FORKED, cause, pid=found.pid, uptime=found.started)
        if found.draining:
            self._step(Event.DRAIN, cause)
        self._watch()
        if found.fingerprint != fingerprint(self.config) and not found.draining:
            await self._restart("its configuration has changed")

    async def _exited(self, exit_: Exited) -> None:
        what, before = ending.sentence(exit_), self._processes.over(exit_.pid)
        if before is None:
            self._mark(self.name, f"pid {exit_.pid} {what}; it had been replaced")
            self.registry.touch()
            return
        self._watching.end()
        if self.state is State.STOPPING:
            self._mark(self.name, f"pid {exit_.pid} {what}, as asked")
            last = ending.last_exit(exit_, AS_ASKED)
            self._step(Event.ENDED, what, pid=None, uptime=None, last_exit=last, **health.nothing_measured(self.config))
            if self.wanted is not Wanted.DOWN:
                await self._launch("asked for while it was stopping")
            return
        now = time.monotonic()
        self._record = restart.forgiven(self._record, before.ready_for(now))
        await self._failed(exit_, before.why_killed or ending.cause(exit_, before.running), now)

    async def _failed(self, exit_: Exited, cause: str, now: float) -> None:
        self._record = restart.failed(self._record, now, self.settings.intensity, self.settings.period)
        self._mark(self.name, f"pid {exit_.pid} ended: {cause}")
        logger.warning("%s (pid %d) ended: %s", self.name, exit_.pid, cause)
        is_kept_down = restart.is_kept_down(self.settings.restart, exit_.code)
        delay = restart.next_delay(self._record, random.random())
        due = None if is_kept_down else time.time() + delay
        self._step(
            Event.EXITED,
            cause,
            pid=None,
            uptime=None,
            next_due=due,
            restarts=self.registry[self.name].restarts + (not is_kept_down),
            last_exit=ending.last_exit(exit_, cause),
            last_error=cause,
            remedy=f"chorus logs {self.name}",
            **health.nothing_measured(self.config),
        )
        if is_kept_down:
            self._keep_down(cause)
            return
        if self._record.gave_up:
            cause = f"{cause}; ended too often ({len(self._record.times)} times in {self.settings.period:g} s)"
            self._step(Event.GAVE_UP, cause, last_error=cause, next_due=due)
            logger.error("%s has failed: %s; next try in %.0f s", self.name, cause, delay)
        if delay == 0:
            await self._launch(f"restarted after: {cause}")
        else:
            self._pause.begin(self._group, delay, cause)

    def _keep_down(self, cause: str) -> None:
        why, remedy = f"{cause}; restart = {self.settings.restart}", f"chorus start {self.name}"
        self._step(Event.GAVE_UP, why, pid=None, uptime=None, last_error=cause, remedy=remedy)
        self._pause.begin(self._group, None, cause)

    # -- health -----------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        self._watching.begin(self._group, *self._processes.now, self.settings)

    async def _heard(self, heard: Heard) -> None:
        if heard.pid != self.pid:
            return
        if isinstance(heard.verdict, Silent):
            was = self.state
            cause = f"no answer for {heard.verdict.seconds:.1f} s"
            if was is not State.HUNG and self._step(Event.SILENT, cause) is State.HUNG:
                self._group.start_soon(self._end_hung, heard.pid, cause)
            return
        seen = heard.verdict.health
        if seen.rss_bytes is None:
            seen = replace(seen, rss_bytes=processes.resident(heard.pid))
        self._well(seen)
        if self.wanted is Wanted.DRAINED and self.state in ANSWERING:
            await self._refuse_new("drained before")
        elif self.wanted is Wanted.UP and self.state is State.DRAINING:
            await self._succeed("asked for while no new process could be started")
        await self._look_at_memory(seen)

    def _well(self, seen: HealthResponse) -> None:
        backend, fields = seen.backend, health.figures(self.config, seen)
        # Whatever a program or the gateway asks, it is not what the team's answers come from.
        if isinstance(self.config, SpecialistConfig) and not self.config.command:
            self.registry.set_backend(
                BackendStatus(backend.kind, backend.url, backend.state, backend.error, seen.model)
            )
        event, cause, remedy = health.judged(seen)
        if next_state(self.state, event) is self.state and self.registry[self.name].last_error == backend.error:
            self.registry.note(self.name, **fields)
            return
        self._processes.answered(time.monotonic())
        self._step(event, cause, **fields, last_error=backend.error, remedy=remedy)

    async def _look_at_memory(self, seen: HealthResponse) -> None:
        """Replaces a process that has more than it may, as soon as it is idle. That is no failure."""
        is_idle = seen.in_flight == 0 and seen.queued == 0 and self.state in ANSWERING
        age = time.monotonic() - self._processes.started
        found = self._ceiling.look(seen.rss_bytes, self.settings.max_rss_bytes, age, is_idle)
        if found.loud:
            self._mark(self.name, found.loud)
            logger.error("%s: %s", self.name, found.loud)
        if (notice := found.notice or self._not_replaced) != self.registry[self.name].notice:
            self.registry.note(self.name, notice=notice)
            self.registry.touch()
        if found.recycle:
            await self._succeed(found.recycle, recycled=self.registry[self.name].recycled + 1)

    async def _end_hung(self, pid: int, cause: str) -> None:
        """Has a hung process write its stacks, then ends it and its group. The brake keeps load from becoming restarts:
        a place in it is free again when the successor answers, and whoever has recovered until then is left alone.
        """
        async with self._brake:
            if self.pid != pid or self.state is not State.HUNG:
                return
            self._watching.end()  # its end is decided, whatever it says once it is woken
            self._mark(self.name, f"pid {pid} is hung ({cause}): its stacks are in {self.name}.out, then it is killed")
            await self._processes.end_hung(pid, f"hung: {cause}")
            with anyio.move_on_after(health.START_WITHIN):
                await self.registry.wait_for(lambda: self.state not in _ON_ITS_WAY)

    # -- the step -------------------------------------------------------------------------------------------------------------

    def _step(self, event: Event, cause: str, **fields: Any) -> State:
        self.state = next_state(self.state, event)
        self.registry.move(self.name, self.state.value, cause, **{"attempt": self._record.in_a_row, **fields})
        return self.state


_ON_ITS_WAY = frozenset({State.HUNG, State.BACKING_OFF, State.STARTING})
