"""The configuration is read again: what follows is planned, told, and carried out. One after the other, never two at once.

Between the plan and the word to the keepers nothing is awaited, so nothing comes between: a `down` finds the team as it was or
as it is to be. What a keeper makes of its word is its own affair, and what became of it is waited for here.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from contextlib import nullcontext

import anyio
import anyio.to_thread

from protocol.control import Change, Outcome, Plan
from protocol.errors import Internal, ProtocolError, Unavailable
from protocol.settings import ChildConfig
from supervisor import roster
from supervisor.config import ConfigError, Loaded, supervision
from supervisor.errors import ForkServerLost
from supervisor.fleet.inbox import Command, Reconfigured
from supervisor.fleet.lifecycle import State, Wanted
from supervisor.fleet.plan import Member, in_the_way, plan
from supervisor.fleet.registry import newcomer
from supervisor.operations import GIVE_UP_AFTER, Fleet, Ground, Keeping, given_up

logger = logging.getLogger("chorus.supervisor")

GONE = "not in the configuration any more"
READ = "the configuration was read again"


class Reload:
    """One reload. `planned` is set when `plan` stands or it was `refused`, `done` when everything has its outcome."""

    def __init__(self, fleet: Fleet, dry_run: bool) -> None:
        self._fleet = fleet
        self._dry_run = dry_run
        self.planned = anyio.Event()
        self.done = anyio.Event()
        self.plan: Plan | None = None
        self.refused: ProtocolError | None = None
        self.outcomes: list[Outcome] = []
        self._pids: dict[str, int | None] = {}  # of those that are leaving

    async def run(self) -> None:
        """Returns when all is done. A broken configuration is a plan that has only mistakes."""
        try:
            async with self._fleet.reloading:
                with nullcontext() if self._dry_run else self._fleet.systemd.reloading():
                    leaving = await self._run()
            await self._await_ends(leaving)  # however long their last answers take, the next reload may come
        except ConfigError as error:
            self.plan = Plan(mistakes=error.mistakes)
        except ProtocolError as error:
            self.refused = error
        except Exception:  # the fence: a mistake of ours in reading a file must not end the supervisor
            logger.exception("a reload failed")
            self.refused = Internal("the reload failed: chorus logs supervisor says why")
        finally:
            self.planned.set()
            self.done.set()

    async def _run(self) -> list[Keeping]:
        """Returns those that are leaving."""
        fleet = self._fleet
        loaded = await anyio.to_thread.run_sync(fleet.reread)
        configs = {config.name: config for config in await anyio.to_thread.run_sync(roster.children, loaded)}
        if fleet.stop.is_set():
            raise Unavailable("the team goes down")
        if fleet.ground is None or not fleet.keepers:
            raise Unavailable("the supervisor is still coming up: try again", retry_after=1.0)
        now = {name: _member(keeper) for name, keeper in fleet.keepers.items() if fleet.is_member(name)}
        then = {name: Member(config, supervision(loaded, name)) for name, config in configs.items()}
        self.plan = plan(now, then, fleet.loaded.settings, loaded.settings)
        if self._dry_run:
            return []
        ground, changes = fleet.ground, self.plan.changes
        fleet.take(loaded)
        fleet.registry.happened(f"{READ}: {_summary(self.plan)}")
        self.planned.set()
        leaving = [fleet.keepers[change.name] for change in changes if change.action == "remove"]
        for keeper in leaving:
            self._pids[keeper.name] = keeper.pid
            stop = Command("stop", GONE)
            keeper.tell(stop, urgent=True)
            fleet.errands.start_soon(_see_off, fleet, keeper, stop)
        async with anyio.create_task_group() as group:
            for change in changes:
                if change.action != "remove" and (waits := self._told(ground, change, configs, loaded, now)):
                    group.start_soon(self._await, *waits)
            fleet.registry.arrange(list(configs))
            try:
                await ground.settle(loaded.settings.supervision)
            except ForkServerLost:
                pass  # the next one is told from the start
        return leaving

    def _told(
        self,
        ground: Ground,
        change: Change,
        configs: dict[str, ChildConfig],
        loaded: Loaded,
        now: dict[str, Member],
    ) -> tuple[Keeping, anyio.Event, bool, int | None] | None:
        """Tells one keeper, who is made where there is none; returns what is to be waited for, if anything."""
        fleet, name = self._fleet, change.name
        config, settings = configs[name], supervision(loaded, name)
        keeper = fleet.keepers.get(name)
        if keeper is None:
            fleet.registry.add(newcomer(config), f"{READ}: added")
            keeper = fleet.keepers[name] = ground.keep(config, settings)
        old = keeper.pid
        is_restart = change.action == "restart"
        word = Reconfigured(
            config,
            settings,
            change.why if is_restart else [],
            lets_go=is_restart and in_the_way(name, config, now),
        )
        keeper.tell(word, urgent=True)
        if is_restart:
            return keeper, word.taken, True, old
        if change.action in ("add", "retry"):
            start = Command("start", READ)
            keeper.tell(start, urgent=True)
            return keeper, start.taken, False, old
        return None

    async def _await(self, keeper: Keeping, taken: anyio.Event, is_restart: bool, old: int | None) -> None:
        with anyio.move_on_after(GIVE_UP_AFTER):
            self.outcomes.append(await self._fleet.outcome(keeper, taken, Wanted.UP, old, is_restart=is_restart))
            return
        self.outcomes.append(given_up(keeper, old))

    async def _await_ends(self, leaving: list[Keeping]) -> None:
        fleet = self._fleet
        with anyio.move_on_after(GIVE_UP_AFTER):
            await fleet.registry.wait_for(lambda: all(_has_left(fleet, keeper) for keeper in leaving))
        for keeper in leaving:
            old = self._pids[keeper.name]
            if not _has_left(fleet, keeper):
                self.outcomes.append(given_up(keeper, old))
            elif fleet.is_member(keeper.name):
                self.outcomes.append(Outcome(keeper.name, old_pid=old, error="it is in the configuration again"))
            else:
                self.outcomes.append(Outcome(keeper.name, old_pid=old))


def _has_left(fleet: Fleet, keeper: Keeping) -> bool:
    """Whether there is nothing more to wait for with one that was told to leave; it may have come back."""
    return keeper.is_gone or keeper.inbox.is_closed or fleet.is_member(keeper.name)


async def _see_off(fleet: Fleet, keeper: Keeping, stop: Command) -> None:
    """Forgets somebody who was removed as soon as no process lives, unless the name has come back by then."""
    name = keeper.name
    await stop.taken.wait()
    await fleet.registry.wait_for(lambda: _has_left(fleet, keeper))
    if fleet.is_member(name):
        return
    if fleet.keepers.get(name) is keeper:
        del fleet.keepers[name]
        keeper.dismiss()
    fleet.registry.remove(name, GONE)


def _member(keeper: Keeping) -> Member:
    wanted = {Wanted.UP: "up", Wanted.DOWN: "down", Wanted.DRAINED: "drained"}
    return Member(
        keeper.config,
        keeper.settings,
        running=keeper.running,
        wanted=wanted[keeper.wanted],  # type: ignore[arg-type]
        has_failed=keeper.state is State.FAILED,
        is_kept_down=keeper.state is State.FAILED and math.isinf(keeper.due_in()),
    )


def _summary(plan: Plan) -> str:
    """`2 restarted, 1 added`, or that nothing changed."""
    words = {
        "add": "added",
        "remove": "removed",
        "restart": "restarted",
        "live": "changed live",
        "retry": "tried again",
    }
    counts: Counter[str] = Counter(change.action for change in plan.changes)
    return (
        ", ".join(f"{counts[action]} {word}" for action, word in words.items() if counts[action]) or "nothing changed"
    )
