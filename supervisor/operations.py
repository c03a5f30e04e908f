"""What operators can ask of the whole fleet: commands for some of it, and its end. How they are asked is `control.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import anyio
import anyio.abc

from daemon.notify import Systemd
from protocol import control as messages
from protocol import names as spelling
from protocol.control import Outcome
from protocol.errors import Busy
from protocol.messages import Request
from protocol.names import GATEWAY
from protocol.settings import ChildConfig, Supervision
from supervisor.config import Loaded
from supervisor.fleet.inbox import Command, Happening, Inbox
from supervisor.fleet.lifecycle import ANSWERING, RUNNING, State, Wanted
from supervisor.fleet.processes import is_ours
from supervisor.fleet.registry import Registry
from supervisor.team.routing import Orchestration
from supervisor.team.rulebook import Rulebook

TEAM_CHATS = 4  # run for others at once; more would take time from the health checks
GIVE_UP_AFTER = 120.0  # seconds a command waits for one specialist
SETBACK = 0.5  # a pause longer than this before the next try is an answer to whoever waits for a start


class Keeping(Protocol):
    """Whoever keeps a specialist or the gateway: a Keeper, or an Observer where systemd is the restarter."""

    name: str
    config: ChildConfig
    settings: Supervision
    state: State
    wanted: Wanted
    inbox: Inbox

    @property
    def pid(self) -> int | None: ...

    @property
    def running(self) -> ChildConfig | None:
        """What the process was started with; None without one."""

    @property
    def is_gone(self) -> bool: ...

    def tell(self, happening: Happening, *, urgent: bool = False) -> None: ...

    def due_in(self) -> float: ...

    def dismiss(self) -> None:
        """Ends the keeping of a name that is no more: no process of it lives."""


class Ground(Protocol):
    """What the keepers stand on, as long as it holds."""

    def keep(self, config: ChildConfig, settings: Supervision) -> Keeping:
        """A keeper for somebody, already running."""

    async def settle(self, supervision: Supervision) -> None:
        """Does what the settings say that is about no specialist. Raises ForkServerLost."""


class Fleet:
    """The keepers and what can be asked of them together. `stop` set means that the supervisor goes down.

    `errands` is the control socket's task group, in which commands run: it is there as long as they can be asked. `loaded` is
    the configuration in force, and `reread` reads it again as it was read at the start; ConfigError with all its mistakes.
    Keepers and the `ground` under them are there as long as a fork server is.
    """

    errands: anyio.abc.TaskGroup

    def __init__(
        self,
        registry: Registry,
        stop: anyio.Event,
        loaded: Loaded,
        reread: Callable[[], Loaded],
        systemd: Systemd,
    ) -> None:
        self.registry = registry
        self.keepers: dict[str, Keeping] = {}
        self.ground: Ground | None = None
        self.stop = stop
        self.take(loaded)
        self.reread = reread
        self.systemd = systemd
        self.reloading = anyio.Lock()
        self.grace: float | None = None
        self.down = anyio.Event()
        self.told: list[anyio.Event] = []  # set when somebody who asked for the end has heard of it
        self.team_chats = anyio.CapacityLimiter(TEAM_CHATS)
        self.rulebook = Rulebook(loaded.dirs.state)

    def take(self, loaded: Loaded) -> None:
        """This is the configuration from here on."""
        self.loaded = loaded
        self.registry.configured(messages.Configured(time.time(), loaded.places))

    def resolve(self, asked: list[str] | None) -> list[str]:
        """Names, aliases and globs into names, in the roster's order; raises NotFound with the nearest ones.

        The gateway is meant only where it is named.
        """
        return spelling.chosen(asked, self.registry.names, [GATEWAY])

    def is_member(self, name: str) -> bool:
        """Whether the configuration in force has somebody of this name kept."""
        settings = self.loaded.settings
        return settings.gateway.enabled if name == GATEWAY else name in settings.roster

    def set_rules(self, rules: Orchestration) -> None:
        """Puts these orchestration rules in force, for every process. Raises Unavailable where they cannot be kept."""
        self.rulebook.write(rules)
        count = len(rules.routing_rules)
        self.registry.happened(f"the orchestration rules were replaced: {count or 'no'} rule{'s' * (count != 1)}")

    async def command(self, request: messages.Named, names: list[str]) -> list[Outcome]:
        """Carries out start, stop, restart or drain for some, side by side; rolling restarts one after the other."""
        outcomes: list[Outcome] = []
        done = anyio.Event()

        async def one(name: str) -> None:
            outcomes.append(await self._command_one(request, name))

        async def work() -> None:
            if isinstance(request, messages.Restart) and request.rolling:
                for name in names:
                    await one(name)
            else:
                async with anyio.create_task_group() as group:
                    for name in names:
                        group.start_soon(one, name)
            done.set()

        # Not in the client's own task: what it asked for goes on when it leaves.
        self.errands.start_soon(work)
        await done.wait()
        return outcomes

    def go_down(self, grace: float | None) -> None:
        """Has the supervisor go down; a second time with less patience."""
        if self.stop.is_set() and grace is not None:
            for keeper in self.keepers.values():
                keeper.tell(Command("stop", "the team goes down at once", grace), urgent=True)
        self.grace = grace
        self.stop.set()

    async def take_down(self) -> None:
        """Stops everybody in good order and returns when nobody runs."""
        self.registry.set_state("stopping")
        commands = [Command("stop", "the team goes down", self.grace) for _ in self.keepers]
        for keeper, command in zip(self.keepers.values(), commands, strict=True):
            keeper.tell(command, urgent=True)
        for command in commands:
            await command.taken.wait()
        await self.registry.wait_for(lambda: all(one.is_gone for one in self.keepers.values()))

    def went_down(self) -> None:
        """Says that nobody runs any more."""
        self.registry.set_state("down")
        self.down.set()

    async def _command_one(self, request: messages.Named, name: str) -> Outcome:
        keeper = self.keepers.get(name)
        if keeper is None and not self.is_member(name):
            return Outcome(name, error=f"{name}.enabled is false in the configuration: set it, then chorus reload")
        if keeper is None:
            return Outcome(name, error="the supervisor is still coming up: try again")
        if not self.is_member(name):
            return Outcome(name, old_pid=keeper.pid, error="it is not in the configuration any more, and is leaving")
        old = keeper.pid
        command = _command(request)
        try:
            keeper.tell(command)
        except Busy as busy:
            return Outcome(name, old_pid=old, error=busy.sentence)
        if not getattr(request, "wait", True):
            return Outcome(name, old_pid=old)
        is_restart = isinstance(request, messages.Restart)
        with anyio.move_on_after(GIVE_UP_AFTER + (command.grace or 0.0)):
            return await self.outcome(keeper, command.taken, _WANTED[type(request)], old, is_restart=is_restart)
        return given_up(keeper, old)

    async def outcome(
        self, keeper: Keeping, taken: anyio.Event, wanted: Wanted, old: int | None, *, is_restart: bool = False
    ) -> Outcome:
        """Waits until what a keeper was told is taken up and carried out, or cannot be. `old` is the pid before."""
        began = anyio.current_time()
        await taken.wait()
        error = await self._carried_out(keeper, wanted, old, is_restart=is_restart)
        took = round((anyio.current_time() - began) * 1000, 1)
        down_ms = took if is_restart else None
        return Outcome(keeper.name, old_pid=old, new_pid=keeper.pid, down_ms=down_ms, error=error)

    async def _carried_out(self, keeper: Keeping, wanted: Wanted, old: int | None, *, is_restart: bool) -> str | None:
        """Returns when it is so, or why it cannot be."""
        if wanted is Wanted.DRAINED and keeper.wanted is not wanted:
            if not is_ours(keeper.config) and keeper.state in RUNNING:
                return (
                    f"{keeper.name} runs a program of its own, which cannot be told to refuse requests: stop it instead"
                )
            return f"{keeper.name} is not running"
        if is_restart and keeper.pid == old and keeper.state in RUNNING:
            return self.registry[keeper.name].last_error or "no new process could be started: see chorus logs"

        def is_done() -> bool:
            if wanted is Wanted.DOWN:
                return keeper.is_gone
            return keeper.state in (ANSWERING if wanted is Wanted.UP else (State.DRAINING,))

        await self.registry.wait_for(
            lambda: is_done() or keeper.wanted is not wanted or keeper.inbox.is_closed or self._setback(keeper)
        )
        if is_done():
            return None
        if keeper.inbox.is_closed:
            return "the fork server was lost and the team is started anew: try again"
        if keeper.wanted is not wanted:
            return f"somebody asked for something else meanwhile: it is to be {keeper.wanted.value}"
        status = self.registry[keeper.name]
        return f"{status.last_error or keeper.state.value}; {status.remedy or 'see chorus status'}"

    def _setback(self, keeper: Keeping) -> bool:
        return keeper.state is State.FAILED or (keeper.state is State.BACKING_OFF and keeper.due_in() > SETBACK)


def given_up(keeper: Keeping, old: int | None) -> Outcome:
    """The outcome for one that was waited for long enough."""
    error = f"still {keeper.state.value}: see chorus status"
    return Outcome(keeper.name, old_pid=old, new_pid=keeper.pid, error=error)


_WANTED: dict[type[Request], Wanted] = {
    messages.Start: Wanted.UP,
    messages.Stop: Wanted.DOWN,
    messages.Restart: Wanted.UP,
    messages.Drain: Wanted.DRAINED,
}


def _command(request: messages.Named) -> Command:
    match request:
        case messages.Start():
            return Command("start", "asked to start")
        case messages.Stop():
            return Command("stop", "asked to stop", request.grace)
        case messages.Restart():
            return Command("restart", "asked to restart")
        case messages.Drain():
            return Command("drain", "asked to drain")
    raise AssertionError(f"{type(request).__name__} is no command")
