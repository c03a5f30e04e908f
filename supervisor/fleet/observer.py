"""One task for each specialist where systemd is the restarter: it watches, says what happens, and hands on what is asked.

Nothing is forked here, and only systemd kills. How a process is, it says itself, over the wire; that it ended and what systemd
makes of it comes from the lookout. What an operator asks of systemd itself is as good as asked of us.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread

from protocol.control import AS_ASKED, BackendStatus
from protocol.settings import ChildConfig, SpecialistConfig, Supervision
from supervisor.errors import SystemdRefused
from supervisor.fleet import ending, health, systemctl
from supervisor.fleet.calls import Exited
from supervisor.fleet.health import Answering, Silent
from supervisor.fleet.inbox import Command, Happening, Heard, Inbox, Reconfigured, Seen
from supervisor.fleet.lifecycle import ANSWERING, RUNNING, Event, ImpossibleStep, State, Wanted, next_state
from supervisor.fleet.lookout import AT_REST, Lookout
from supervisor.fleet.owner import describe
from supervisor.fleet.processes import is_ours
from supervisor.fleet.registry import Registry
from supervisor.fleet.systemctl import Systemctl, Unit

logger = logging.getLogger("chorus.supervisor")


class Observer:
    """Observes one specialist and delegates to systemd; the only writer of its entry in the registry.

    To the rest of the house it is what a Keeper is.
    """

    def __init__(
        self,
        config: ChildConfig,
        settings: Supervision,
        systemd: Systemctl,
        registry: Registry,
        mark: Callable[[str, str], None],
    ) -> None:
        self.config = config
        self.name = config.name
        self.settings = settings
        self.registry = registry
        self.state = State.STOPPED
        self.wanted = Wanted(registry[config.name].wanted)
        self.pid: int | None = None
        self.inbox = Inbox(config.name)
        self._systemd = systemd
        self._mark = mark
        self._has_looked = False
        self._why_killed: str | None = None
        self._lookout = Lookout(config.name, systemd, lambda unit, orders: self.tell(Seen(unit, orders)))
        self._why_next = "was running before this supervisor"
        self._watching = health.Watching(
            lambda pid, verdict: self.tell(Heard(pid, verdict)),
            lambda: False,  # the sockets are systemd's
        )

    @property
    def _remedy(self) -> str:
        """Where units are missing, or we may not give orders: the same command mends both."""
        status = f"systemctl {self._systemd.scope} status {systemctl.service(self.name)}"
        return f"chorus service install --restarter systemd, or see {status}"

    @property
    def is_gone(self) -> bool:
        """No process of this name lives."""
        return self.state is State.STOPPED and self.pid is None

    @property
    def running(self) -> ChildConfig | None:
        """What the process was started with, as far as we know; None without one."""
        return self.config if self.pid is not None else None

    def dismiss(self) -> None:
        """Ends the observing of a name that is no more: no process of it lives."""
        self._group.cancel_scope.cancel()

    def tell(self, happening: Happening, *, urgent: bool = False) -> None:
        """Something happened. Never waits; raises Busy for a command when hundreds wait already and it is not urgent."""
        self.inbox.put(happening, urgent=urgent)

    def due_in(self) -> float:
        """Seconds until the next try: only systemd knows when, and where it has given up there is none."""
        return math.inf if self.state is State.FAILED else 0.0

    async def run(self) -> None:
        """Lives until cancelled."""
        try:
            async with anyio.create_task_group() as self._group, aclosing(self.inbox.happenings()) as happenings:
                self._group.start_soon(self._lookout.run)
                async for happening in happenings:
                    try:
                        await self._handle(happening)
                    except ImpossibleStep:
                        logger.exception("%s: an event came that cannot", self.name)
                    except SystemdRefused as error:
                        await self._refused(error)
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
            case Reconfigured():
                self.config, self.settings = happening.config, happening.settings
                if happening.changed and self.state in RUNNING:
                    await self._restart(f"its configuration has changed: {', '.join(happening.changed)}")
            case Heard():
                await self._heard(happening)
            case Seen():
                # What was seen before the last order says nothing of what came of it, and is looked at again.
                if happening.orders == self._lookout.orders:
                    await self._seen(happening.unit)

    # -- what is asked ------------------------------------------------------------------------------------------------------

    async def _start(self, cause: str) -> None:
        was = self.wanted
        self._want(Wanted.UP)
        if was is Wanted.DRAINED and self.pid is not None:
            await self._restart(cause)
        elif self.state not in RUNNING:
            self._why_next = cause
            if self.state in (State.BACKING_OFF, State.FAILED):
                self._step(Event.ABANDONED, cause, last_error=None, remedy=None)
            await self._systemd.forgive(self.name)
            await self._systemd.start(self.name)
            self._lookout.ordered()

    async def _stop(self, cause: str, grace: float | None) -> None:
        self._want(Wanted.DOWN)
        await self._systemd.stop(self.name)
        self._lookout.ordered()
        if self.state in RUNNING:
            self._watching.end()
            self._step(Event.STOP, cause)
        elif self.state in (State.BACKING_OFF, State.FAILED):
            self._step(Event.ABANDONED, cause)
        if self.pid is not None and grace is not None and grace < self.settings.grace:
            self._group.start_soon(self._hurry, self.pid, grace)

    async def _restart(self, cause: str) -> None:
        self._want(Wanted.UP)
        self._why_next = cause
        await self._systemd.forgive(self.name)
        if self.pid is None:
            await self._systemd.start(self.name)
        else:
            await self._systemd.restart(self.name)
        self._lookout.ordered()
        if self.state in RUNNING:
            self._watching.end()
            self._step(Event.STOP, cause)
        elif self.state in (State.BACKING_OFF, State.FAILED):
            self._step(Event.ABANDONED, cause)

    async def _drain(self, cause: str) -> None:
        if self.state in RUNNING:
            self._want(Wanted.DRAINED)
            if self.state in ANSWERING:
                await self._refuse_new(cause)

    async def _refuse_new(self, cause: str) -> None:
        """Only for a process that has answered: before that, the signal would end it."""
        await self._systemd.signal(self.name, signal.SIGUSR1)
        self._step(Event.DRAIN, cause)

    async def _hurry(self, pid: int, grace: float) -> None:
        """A second TERM ends the process's own grace. What does not end then is ended by systemd."""
        await anyio.sleep(grace)
        if self.pid == pid:
            try:
                await self._systemd.signal(self.name, signal.SIGTERM)
            except SystemdRefused as error:
                logger.warning("%s: %s", self.name, error)  # it has just ended

    async def _refused(self, error: SystemdRefused) -> None:
        """What was asked was not done: the process is as it was. Where there is none, that is a failure."""
        logger.error("%s: %s", self.name, error)
        self._mark(self.name, str(error))
        if self.wanted is Wanted.UP and self.pid is None:
            self._fail(str(error), self._remedy)
        else:
            self.registry.note(self.name, last_error=str(error), remedy=self._remedy)
            self.registry.touch()

    def _want(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.registry.want(self.name, wanted.value)

    # -- what systemd knows ---------------------------------------------------------------------------------------------------

    async def _seen(self, unit: Unit) -> None:
        if not self._has_looked:
            self._has_looked = True
            self._tell_missed(unit)
        if unit.active == "deactivating" and unit.pid != self.pid:
            return  # how it ended is not written down yet
        if self.pid is not None and unit.pid != self.pid:
            self._exited(self.pid, unit)
        if unit.pid is not None and self.pid is None:
            self._met(unit.pid, unit)
        elif unit.pid is None and not unit.is_busy and unit.active in AT_REST:
            await self._is_left(unit)

    def _news(self) -> tuple[Exited, str] | None:
        """How a process ended, where that was not told yet."""
        found, last = self._systemd.ending(self.name), self.registry[self.name].last_exit
        return found if found and (last is None or last.at != found[0].at) else None

    def _tell_missed(self, unit: Unit) -> None:
        """What ended while no supervisor was there: said in the log, in the events and in the status."""
        if missed := self._news():
            exit_, what = _told(*missed)
            what += " while no supervisor was running"
            self._mark(self.name, f"a process {what}")
            last = ending.last_exit(exit_, what)
            self.registry.move(self.name, self.state.value, what, restarts=unit.restarts, last_exit=last)

    def _met(self, pid: int, unit: Unit) -> None:
        if self.wanted is Wanted.DOWN:
            self._want(Wanted.UP)
            self._why_next = "systemd was asked to start it"
        self.pid = pid
        cause, self._why_next = self._why_next, "started by systemd"
        fields = {"restarts": unit.restarts, "last_error": None, "remedy": None}
        self._step(Event.FORKED, cause, pid=pid, uptime=time.time(), **fields)
        self._mark(self.name, f"runs, pid {pid}: {cause}")
        self._watching.begin(self._group, self.config, pid, self.settings)

    def _exited(self, pid: int, unit: Unit) -> None:
        nobody_knows = Exited(name=self.name, pid=pid, code=None, signal=None, at=time.time()), ""
        exit_, what = _told(*(self._news() or nobody_knows))
        what, self._why_killed = self._why_killed or what, None
        self.pid = None
        self._watching.end()
        if self.state is State.STOPPING:
            self._mark(self.name, f"pid {pid} {what}, as asked")
            last = ending.last_exit(exit_, AS_ASKED)
            self._step(Event.ENDED, what, pid=None, uptime=None, last_exit=last, **health.nothing_measured(self.config))
            return
        self._mark(self.name, f"pid {pid} ended: {what}")
        logger.warning("%s (pid %d) ended: %s", self.name, pid, what)
        self._why_next = f"restarted by systemd after: {what}"
        self._step(
            Event.EXITED,
            what,
            pid=None,
            uptime=None,
            restarts=unit.restarts,
            last_exit=ending.last_exit(exit_, what),
            last_error=what,
            remedy=f"chorus logs {self.name}",
            **health.nothing_measured(self.config),
        )

    async def _is_left(self, unit: Unit) -> None:
        """There is no process, and systemd will not start one by itself."""
        if self.wanted is Wanted.DOWN:
            if self.state is State.STOPPING:
                self._step(Event.ENDED, AS_ASKED)
            elif self.state in (State.BACKING_OFF, State.FAILED):
                self._step(Event.ABANDONED, AS_ASKED)
        elif unit.socket == "failed" and unit.socket_result == "resources":
            self._fail(
                *await anyio.to_thread.run_sync(describe, self.config.port, self.config.setting_of(self.config.port))
            )
        elif unit.active == "failed" or unit.socket == "failed":
            what = self.registry[self.name].last_error or f"its unit has failed: {unit.result}"
            self._fail(f"{what}; systemd has given up", f"chorus start {self.name}, after chorus logs {self.name}")
        elif self.state is State.STOPPED:
            remedy = (
                f"systemctl {self._systemd.scope} status {systemctl.service(self.name)} {systemctl.socket(self.name)}"
            )
            self._fail("systemd has not started it", remedy)
        elif self.state is not State.FAILED:
            self._want(Wanted.DOWN)
            self._step(Event.ABANDONED, "systemd was asked to stop it", last_error=None, remedy=None)

    def _fail(self, cause: str, remedy: str) -> None:
        if self.state is State.FAILED:
            return
        if self.state is State.STOPPED:
            self._step(Event.BLOCKED, cause)
        logger.error("%s has failed: %s", self.name, cause)
        self._mark(self.name, f"failed: {cause}")
        self._step(Event.GAVE_UP, cause, last_error=cause, remedy=remedy)

    # -- health -----------------------------------------------------------------------------------------------------------

    async def _heard(self, heard: Heard) -> None:
        if heard.pid != self.pid:
            return
        if isinstance(heard.verdict, Silent):
            if self.state in RUNNING and self.state is not State.HUNG:
                cause = f"no answer for {heard.verdict.seconds:.1f} s"
                self._step(Event.SILENT, cause)
                if not is_ours(self.config):  # which feeds no watchdog; everybody else is ended by systemd itself
                    self._why_killed = f"hung: {cause}"
                    await self._systemd.signal(self.name, signal.SIGKILL)
            return
        self._well(heard.verdict)
        if self.wanted is Wanted.DRAINED and self.state in ANSWERING:
            await self._refuse_new("drained before")

    def _well(self, verdict: Answering) -> None:
        seen = verdict.health
        backend = seen.backend
        fields = health.figures(self.config, seen)
        if seen.uptime is not None:
            fields["uptime"] = time.time() - seen.uptime  # since it was not us who started it
        if isinstance(self.config, SpecialistConfig):
            self.registry.set_backend(
                BackendStatus(backend.kind, backend.url, backend.state, backend.error, seen.model)
            )
        if seen.status == "draining" and self.wanted is Wanted.UP and self.state is State.STARTING:
            self._want(Wanted.DRAINED)  # by whoever was here before us
            self._step(Event.DRAIN, "was drained before", **fields)
            return
        well = backend.state in ("ready", "loading")
        event = Event.HEALTHY if well else Event.UNWELL
        if next_state(self.state, event) is self.state and self.registry[self.name].last_error == backend.error:
            self.registry.note(self.name, **fields)
            return
        cause = "answers" if well else backend.error or f"the model server is {backend.state}"
        self._step(event, cause, **fields, last_error=backend.error, remedy=None if well else "chorus doctor")

    # -- the step -------------------------------------------------------------------------------------------------------------

    def _step(self, event: Event, cause: str, **fields: Any) -> None:
        self.state = next_state(self.state, event)
        self.registry.move(self.name, self.state.value, cause, **fields)


def _told(exit_: Exited, result: str) -> tuple[Exited, str]:
    """An end, and the sentence for it."""
    what = ending.sentence(exit_)
    return exit_, f"hung: it did not feed systemd's watchdog, and was {what}" if result == "watchdog" else what
