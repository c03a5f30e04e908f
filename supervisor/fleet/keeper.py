"""One task for each specialist: it alone decides what becomes of it.

Everything that happens to a specialist comes in through one inbox: what operators ask, exits reported by the fork server,
verdicts of the health checks, timers. So no lock is needed, commands are idempotent, and a command during a crash loop or in
the middle of a stop needs no special case.
"""

from __future__ import annotations

import errno
import logging
import random
import signal
import time
from collections.abc import Callable
from contextlib import aclosing

import anyio
import anyio.abc
import anyio.to_thread

from protocol.control import AS_ASKED, BackendStatus, LastExit
from protocol.settings import RestartPolicy, SpecialistConfig, Supervision
from supervisor.errors import CannotBind
from supervisor.fleet import health, restart
from supervisor.fleet.calls import Exited, Process, fingerprint
from supervisor.fleet.health import Answering, Silent
from supervisor.fleet.inbox import Adopted, Command, Due, Happening, Heard, Inbox
from supervisor.fleet.lifecycle import ANSWERING, RUNNING, Event, ImpossibleStep, State, Wanted, next_state
from supervisor.fleet.link import Link
from supervisor.fleet.owner import describe
from supervisor.fleet.pause import Pause
from supervisor.fleet.registry import Registry

logger = logging.getLogger("chorus.supervisor")

WITHOUT_LIMIT = 1_000_000  # failures that are never too many: a port that is taken is nobody's crash
BLOCKED_DELAY = 2.0  # longest pause between tries for a port that somebody else holds
STACKS_WITHIN = 0.3  # seconds a hung process has to write its stacks
END_MARGIN = 2.0  # seconds between the end of a process's own grace and force


class Keeper:
    """Keeps one specialist as it is wanted. The only writer of its entry in the registry.

    `brake` limits how many hung processes of the whole fleet are ended at the same time.
    """

    def __init__(
        self,
        config: SpecialistConfig,
        settings: Supervision,
        policy: RestartPolicy,
        link: Link,
        registry: Registry,
        brake: anyio.CapacityLimiter,
        mark: Callable[[str, str], None],
    ) -> None:
        self.config = config
        self.name = config.name
        self.settings = settings
        self.policy = policy
        self.link = link
        self.registry = registry
        self.state = State.STOPPED
        self.wanted = Wanted.DOWN
        self.pid: int | None = None
        self.replaced: set[int] = set()  # predecessors that finish what they have under way
        self.inbox = Inbox(config.name)
        self._brake = brake
        self._mark = mark
        self._record = restart.Record()
        self._ready_since: float | None = None
        self._why_killed: str | None = None
        self._watching: anyio.CancelScope | None = None
        self._pause = Pause(config.name, config.ai_id, link, lambda number: self.tell(Due(number)))

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

    def note_missed(self, exit_: Exited) -> None:
        """A process ended while no supervisor was there: said in the log and in the status, and counted."""
        if exit_.asked:
            self._mark(self.name, f"pid {exit_.pid} {_ending(exit_)}, as asked")
            return
        cause = f"{_ending(exit_)} while no supervisor was running"
        self._mark(self.name, f"pid {exit_.pid} {cause}")
        last = LastExit(cause, exit_.code, _signal_name(exit_.signal), exit_.at)
        self.registry.note(self.name, restarts=self.registry[self.name].restarts + 1, last_exit=last)

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
            case Heard():
                await self._heard(happening)
            case Due():
                if happening.number == self._pause.number and self.state in (State.BACKING_OFF, State.FAILED):
                    await self._launch("its time to be tried again came")
            case Adopted():
                await self._adopt(happening.process)

    # -- what is asked ------------------------------------------------------------------------------------------------------

    async def _start(self, cause: str) -> None:
        was = self.wanted
        self._want(Wanted.UP)
        self._record = restart.given_another_chance(self._record)
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
            self._stop_watching()
            await self._end(self.pid, grace)
        elif self.state is State.STOPPING and self.pid is not None and grace is not None:
            self._group.start_soon(self._make_sure, self.pid, grace)  # it was asked before, with more patience
        elif self.state in (State.BACKING_OFF, State.FAILED):
            self._step(Event.ABANDONED, cause)
        if grace is not None:
            for pid in self.replaced:
                self._group.start_soon(self._make_sure, pid, grace)

    async def _restart(self, cause: str) -> None:
        self._want(Wanted.UP)
        self._record = restart.given_another_chance(self._record)
        if self.state is State.STOPPING:
            return
        old = self.pid
        # The successor accepts on the same listener before the old one stops: nobody waits.
        await self._launch(cause)
        if old is not None and old != self.pid:
            await self._replace(old)

    async def _drain(self, cause: str) -> None:
        if self.state in RUNNING:
            self._want(Wanted.DRAINED)
            if self.state in ANSWERING:
                await self._refuse_new(cause)

    async def _refuse_new(self, cause: str) -> None:
        """Only for a process that has answered: before that, the signal would end it."""
        assert self.pid is not None
        await self.link.signal(self.pid, signal.SIGUSR1)
        self._step(Event.DRAIN, cause)

    def _want(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.registry.want(self.name, wanted.value)

    # -- starting and ending -------------------------------------------------------------------------------------------------

    async def _launch(self, cause: str) -> None:
        """Binds the port where it is not held yet, and starts a process."""
        self._pause.end()
        try:
            await self.link.bind(self.name, self.config.addresses, self.config.port)
            pid = await self.link.fork(self.config)
        except CannotBind as error:
            if self.pid is None:
                await self._blocked(error)
            else:  # no successor is no reason to lose what runs
                self.registry.note(self.name, last_error=f"no new process could be started: {error}")
                self._mark(self.name, f"not replaced: no new process could be started: {error}")
            return
        self.pid = pid
        self._why_killed = None
        self._step(Event.FORKED, cause, pid=pid, uptime=time.time(), last_error=None, remedy=None)
        self._mark(self.name, f"started, pid {pid}: {cause}")
        self._watch(pid)

    async def _blocked(self, error: CannotBind) -> None:
        if error.number == errno.EADDRINUSE:
            fact, remedy = await anyio.to_thread.run_sync(describe, self.config.port, self.name)
        else:
            fact, remedy = f"port {self.config.port} cannot be bound: {error}", "see chorus doctor"
        self._record = restart.failed(self._record, time.monotonic(), WITHOUT_LIMIT, self.settings.period)
        delay = min(BLOCKED_DELAY, restart.next_delay(self._record, random.random()) or restart.FIRST_DELAY)
        if self.registry[self.name].last_error != fact:
            self._mark(self.name, f"cannot start: {fact}; {remedy}")
        self._step(Event.BLOCKED, fact, pid=None, uptime=None, last_error=fact, remedy=remedy)
        self._pause.begin(self._group, delay, fact)

    async def _adopt(self, found: Process) -> None:
        if found.stopping:
            # It was asked to end, by a stop or a restart; to ask again would cut its answers short.
            self.replaced.add(found.pid)
            self._group.start_soon(self._make_sure, found.pid, None)
            return
        if self.pid is not None:
            # Two of one name: a restart was under way when the last supervisor died. The newer one stays.
            await self._replace(self.pid)
        self._want(Wanted.DRAINED if found.draining else Wanted.UP)
        self.pid = found.pid
        cause = "was running before this supervisor"
        self._step(Event.FORKED, cause, pid=found.pid, uptime=found.started)
        if found.draining:
            self._step(Event.DRAIN, cause)
        self._watch(found.pid)
        if found.fingerprint != fingerprint(self.config) and not found.draining:
            await self._restart("its configuration has changed")

    async def _replace(self, pid: int) -> None:
        self.replaced.add(pid)
        await self._end(pid, None)

    async def _end(self, pid: int, grace: float | None) -> None:
        """Asks a process to end and sees to it that it does."""
        await self.link.signal(pid, signal.SIGTERM)
        await self.link.signal(pid, signal.SIGCONT)  # a stopped one does not hear the first
        self._group.start_soon(self._make_sure, pid, grace)

    async def _make_sure(self, pid: int, grace: float | None) -> None:
        if grace is not None and grace < self.settings.grace:
            await anyio.sleep(grace)
            # A second TERM ends its own grace: what is under way gets its last line now.
            if not await self.link.signal(pid, signal.SIGTERM):
                return
        else:
            await anyio.sleep(self.settings.grace)
        await anyio.sleep(END_MARGIN)
        if await self.link.signal(pid, signal.SIGKILL, group=True):
            self._mark(self.name, f"pid {pid} did not end in time and was killed")

    async def _exited(self, exit_: Exited) -> None:
        what = _ending(exit_)
        if exit_.pid != self.pid:
            self.replaced.discard(exit_.pid)
            self._mark(self.name, f"pid {exit_.pid} {what}; it had been replaced")
            self.registry.touch()
            return
        self.pid = None
        self._stop_watching()
        if self.state is State.STOPPING:
            self._mark(self.name, f"pid {exit_.pid} {what}, as asked")
            last = LastExit(AS_ASKED, exit_.code, _signal_name(exit_.signal), exit_.at)
            self._step(Event.ENDED, what, pid=None, uptime=None, last_exit=last, **_NOTHING_MEASURED)
            if self.wanted is not Wanted.DOWN:
                await self._launch("asked for while it was stopping")
            return
        await self._failed(exit_, self._why_killed or what)

    async def _failed(self, exit_: Exited, cause: str) -> None:
        self._why_killed = None
        now = time.monotonic()
        ready_for = now - self._ready_since if self._ready_since is not None else 0.0
        self._ready_since = None
        record = restart.forgiven(self._record, ready_for)
        self._record = restart.failed(record, now, self.settings.intensity, self.settings.period)
        self._mark(self.name, f"pid {exit_.pid} ended: {cause}")
        logger.warning("%s (pid %d) ended: %s", self.name, exit_.pid, cause)
        is_kept_down = self.policy == "never" or (self.policy == "on_failure" and exit_.code == 0)
        status = self.registry[self.name]
        self._step(
            Event.EXITED,
            cause,
            pid=None,
            uptime=None,
            restarts=status.restarts + (not is_kept_down),
            last_exit=LastExit(cause, exit_.code, _signal_name(exit_.signal), exit_.at),
            last_error=cause,
            remedy=f"chorus logs {self.name}",
            **_NOTHING_MEASURED,
        )
        if is_kept_down:
            self._step(Event.GAVE_UP, f"{cause}; restart = {self.policy}", remedy=f"chorus start {self.name}")
            self._pause.begin(self._group, None, cause)
            return
        delay = restart.next_delay(self._record, random.random())
        if self._record.gave_up:
            cause = f"{cause}; ended too often ({len(self._record.times)} times in {self.settings.period:g} s)"
            self._step(Event.GAVE_UP, cause, last_error=cause)
            logger.error("%s has failed: %s; next try in %.0f s", self.name, cause, delay)
        if delay == 0:
            await self._launch(f"restarted after: {cause}")
        else:
            self._pause.begin(self._group, delay, cause)

    # -- health -----------------------------------------------------------------------------------------------------------

    def _watch(self, pid: int) -> None:
        self._stop_watching()
        self._ready_since = None
        scope = self._watching = anyio.CancelScope()

        async def watch() -> None:
            with scope:
                await health.watch(
                    self.config.addresses[0],
                    self.config.port,
                    pid,
                    self.settings.health_period,
                    self.settings.hung_after,
                    lambda verdict: self.tell(Heard(pid, verdict)),
                )

        self._group.start_soon(watch)

    def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def _heard(self, heard: Heard) -> None:
        if heard.pid != self.pid:
            return
        if isinstance(heard.verdict, Silent):
            was = self.state
            cause = f"no answer for {heard.verdict.seconds:.1f} s"
            if was is not State.HUNG and self._step(Event.SILENT, cause) is State.HUNG:
                self._group.start_soon(self._end_hung, heard.pid, cause)
            return
        self._well(heard.verdict)
        if self.wanted is Wanted.DRAINED and self.state in ANSWERING:
            await self._refuse_new("drained before")

    def _well(self, verdict: Answering) -> None:
        seen = verdict.health
        backend = seen.backend
        fields = {
            "model": seen.model,
            "backend": backend.kind,
            "in_flight": seen.in_flight,
            "queued": seen.queued,
            "first_token_ms": seen.first_token_ms,
            "tokens_per_second": seen.tokens_per_second,
            "prompt_tokens_per_second": seen.prompt_tokens_per_second,
            "rss_bytes": seen.rss_bytes,
        }
        self.registry.set_backend(BackendStatus(backend.kind, backend.url, backend.state, backend.error, seen.model))
        well = backend.state in ("ready", "loading")
        event = Event.HEALTHY if well else Event.UNWELL
        if next_state(self.state, event) is self.state and self.registry[self.name].last_error == backend.error:
            self.registry.note(self.name, **fields)
            return
        if self._ready_since is None:
            self._ready_since = time.monotonic()
        cause = "answers" if well else backend.error or f"the model server is {backend.state}"
        remedy = None if well else "chorus doctor"
        self._step(event, cause, **fields, last_error=backend.error, remedy=remedy)

    async def _end_hung(self, pid: int, cause: str) -> None:
        """Has a hung process write its stacks, then ends it and its group. The brake keeps load from becoming restarts:
        a place in it is free again when the successor answers, and whoever has recovered until then is left alone.
        """
        async with self._brake:
            if self.pid != pid or self.state is not State.HUNG:
                return
            self._stop_watching()  # its end is decided, whatever it says once it is woken
            self._mark(
                self.name,
                f"pid {pid} is hung ({cause}): its stacks are in {self.name}.out, then it is killed",
            )
            await self.link.signal(pid, signal.SIGCONT)
            await self.link.signal(pid, signal.SIGUSR2)
            await anyio.sleep(STACKS_WITHIN)
            if self.pid == pid:
                self._why_killed = f"hung: {cause}"
                await self.link.signal(pid, signal.SIGKILL, group=True)
            with anyio.move_on_after(health.START_WITHIN):
                await self.registry.wait_for(lambda: self.state not in _ON_ITS_WAY)

    # -- the step -------------------------------------------------------------------------------------------------------------

    def _step(self, event: Event, cause: str, **fields: object) -> State:
        self.state = next_state(self.state, event)
        self.registry.move(self.name, self.state.value, cause, **fields)
        return self.state


_ON_ITS_WAY = frozenset({State.HUNG, State.BACKING_OFF, State.STARTING})
_NOTHING_MEASURED = {"in_flight": 0, "queued": 0, "rss_bytes": None}


def _ending(exit_: Exited) -> str:
    if exit_.signal is not None:
        return f"killed by {_signal_name(exit_.signal)}"
    return f"exited with code {exit_.code}"


def _signal_name(number: int | None) -> str | None:
    if number is None:
        return None
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
