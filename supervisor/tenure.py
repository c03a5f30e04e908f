"""The fleet for as long as one fork server lives: it is taken over, kept, watched, and in the end taken down.

Whoever was there before may have died at any instruction. What lives then is of three kinds: processes that the fork server
has, processes that it does not have because its predecessor forked them, and those that ended while nobody looked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import anyio.abc
from msgspec.structs import replace

from daemon import listen
from daemon.notify import Systemd
from protocol.names import GATEWAY
from protocol.settings import ChildConfig, Supervision
from supervisor.config import Loaded
from supervisor.config import supervision as how_kept
from supervisor.errors import CannotStart, ForkServerLost
from supervisor.fleet import pidfiles, restart, survivors, takeover
from supervisor.fleet.calls import Exited, Living, Process
from supervisor.fleet.copies import Copies
from supervisor.fleet.inbox import Adopted, Command, KeptDown
from supervisor.fleet.keeper import Keeper
from supervisor.fleet.link import Link, connected
from supervisor.fleet.marks import Marks
from supervisor.fleet.processes import END_MARGIN
from supervisor.fleet.registry import is_kept_down
from supervisor.operations import Fleet

logger = logging.getLogger("chorus.supervisor")

LIVENESS_RESTARTS = 3  # hung processes of the whole fleet ended at the same time
MEETS_WITHIN = 30.0  # seconds a fork server has to say what lives: it may have to load everything first
PING_EVERY = 2.0
PONG_WITHIN = 6.0  # seconds; then the fork server is as good as dead, and the specialists do without it
OWN_LATENESS = 1.0  # seconds our own loop may be late before a round is void
PORT_LOOK_EVERY = 0.02
REMEMBERED_ENDS = 1000


class Reaper:
    """Takes note of children that are not ours by fork but became ours when their parent died, and of how they ended."""

    def __init__(self) -> None:
        self._ends: OrderedDict[int, int] = OrderedDict()

    def reap(self) -> None:
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._ends[ended[0]] = os.waitstatus_to_exitcode(ended[1])
                if len(self._ends) > REMEMBERED_ENDS:
                    self._ends.popitem(last=False)
        except ChildProcessError:
            pass

    def completed(self, exit_: Exited) -> Exited:
        """With how it ended, where we are the only one who was told."""
        if exit_.code is not None or exit_.signal is not None:
            return exit_
        self.reap()
        code = self._ends.pop(exit_.pid, None)
        if code is None:
            return exit_
        return replace(exit_, code=code if code >= 0 else None, signal=-code if code < 0 else None)


class Tenure:
    """One fork server's time. `leaving` is where processes end that nobody waits for; it outlives this."""

    def __init__(
        self,
        loaded: Loaded,
        fleet: Fleet,
        systemd: Systemd,
        reaper: Reaper,
        copies: Copies,
        leaving: anyio.abc.TaskGroup,
    ) -> None:
        self._loaded = loaded
        self._copies = copies
        self._fleet = fleet
        self._systemd = systemd
        self._reaper = reaper
        self._leaving = leaving
        self._marks = Marks(loaded.dirs.logs)
        self._brake = anyio.CapacityLimiter(LIVENESS_RESTARTS)
        self._gateways_brake = anyio.CapacityLimiter(1)  # its hangs take no place from the specialists'
        self._keepers: dict[str, Keeper] = {}

    async def run(
        self,
        configs: Sequence[ChildConfig],
        forks: Path,
        running: dict[str, int | None],
        missing: str,
        ready: Callable[[], None],
        *,
        resumed: bool,
    ) -> None:
        """Keeps the specialists and the gateway until asked to stop. Raises ForkServerLost, in a group.

        `forks` is where the fork server listens. `running` are the pids that were last known of, by name: what has become of
        them is found out, and said to have happened while `missing`. `resumed` goes on with what was wanted before; otherwise
        everybody is. `ready` is called when the team can be asked.
        """
        fleet, supervision = self._fleet, self._loaded.settings.supervision
        async with connected(forks, self._exited, self._copies) as link, anyio.create_task_group() as group:
            self._link, self._group = link, group
            for config in configs:
                self.keep(config, how_kept(self._loaded, config.name))
            living = await self._meet(link, group)
            group.start_soon(_watch_over, link, living.pid)
            await self.settle(supervision)
            living = await self._take_back(link, living, configs)
            ended = self._tell_of_missed(living, running, missing)
            started = await self._hand_over(link, living, ended, group, resumed=resumed)
            fleet.keepers, fleet.ground = {**self._keepers}, self
            for command in started:
                await command.taken.wait()  # the port is bound then, or it is known who holds it
            ready()
            group.start_soon(self._marks.cap, fleet.keepers)
            await fleet.stop.wait()
            patience = supervision.grace if fleet.grace is None else fleet.grace
            self._systemd.say("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int((patience + 3 * END_MARGIN) * 1e6)}")
            await fleet.take_down()
            await link.quit()
            fleet.went_down()
            group.cancel_scope.cancel()

    def keep(self, config: ChildConfig, settings: Supervision) -> Keeper:
        """A keeper for somebody, already running."""
        brake = self._gateways_brake if config.name == GATEWAY else self._brake
        keeper = Keeper(config, settings, self._link, self._fleet.registry, brake, self._marks.write)
        self._keepers[config.name] = keeper
        self._group.start_soon(keeper.run)
        return keeper

    async def settle(self, supervision: Supervision) -> None:
        """Does what the settings say that is about no specialist. Raises ForkServerLost."""
        await self._link.policy(stop_without_supervisor=supervision.on_supervisor_exit == "stop")

    def _exited(self, exit_: Exited) -> None:
        if keeper := self._keepers.get(exit_.name):
            keeper.tell(self._reaper.completed(exit_))
        else:
            self._group.start_soon(self._link.noted, exit_.pid)

    async def _meet(self, link: Link, group: anyio.abc.TaskGroup) -> Living:
        with anyio.move_on_after(MEETS_WITHIN):
            living: Living = await group.start(link.run)
            return living
        raise ForkServerLost(f"the process that holds the specialists' sockets says nothing for {MEETS_WITHIN:g} s")

    async def _take_back(self, link: Link, living: Living, configs: Sequence[ChildConfig]) -> Living:
        """What lives, with those that a fork server which is gone has left: taken on, or else asked to end.

        The listening sockets come from our own copies, or where we are new too, out of the processes themselves.
        """
        for name in living.held:
            link.copies.put(name, await link.lend(name))
        for config in configs:
            if config.name not in living.held and (sockets := link.copies.of(config.name)):
                try:
                    await link.hold(config.name, sockets)
                except CannotStart as error:
                    link.copies.drop(config.name)
                    logger.error("the port of %s cannot be handed over: %s", config.name, error)
        known = {living.pid, *(one.pid for one in living.processes)}
        taken: list[Process] = []
        lost: list[Process] = []
        for process in await takeover.left_behind(self._loaded.dirs.state / pidfiles.FOLDER, known):
            try:
                if not link.copies.of(process.name) and (sockets := takeover.listeners_of(process)):
                    await link.hold(process.name, sockets)
                await link.adopt(process)
                taken.append(process)
                logger.info("%s (pid %d) has lost its fork server and is taken on", process.name, process.pid)
            except (OSError, CannotStart) as error:
                lost.append(process)
                logger.warning("%s (pid %d) has lost its fork server: %s", process.name, process.pid, error)
        if lost:
            grace = self._loaded.settings.supervision.grace + END_MARGIN
            self._leaving.start_soon(survivors.end, lost, grace)
            with anyio.move_on_after(grace):
                for process in lost:
                    if not link.copies.of(process.name):
                        await _vacated(process)
        return replace(living, processes=[*living.processes, *taken])

    def _tell_of_missed(self, living: Living, running: dict[str, int | None], missing: str) -> set[str]:
        """Says what ended while nobody could be told of it: none of it is lost in silence.

        Returns whose last process did so by itself.
        """
        ended: set[str] = set()

        def tell(exit_: Exited) -> None:
            if keeper := self._keepers.get(exit_.name):
                keeper.note_missed(exit_, missing)
                (ended.discard if exit_.asked else ended.add)(exit_.name)

        missed = self._not_on_record(living.exits)
        for exit_ in living.exits:
            if exit_ in missed:
                tell(exit_)
            self._group.start_soon(self._link.noted, exit_.pid)
        heard_of = {*(one.pid for one in living.processes), *(one.pid for one in living.exits)}
        for name, pid in running.items():
            if pid is not None and pid not in heard_of and name in self._keepers:
                asked = self._fleet.registry[name].wanted == "down"
                exit_ = Exited(name=name, pid=pid, code=None, signal=None, at=time.time(), asked=asked)
                tell(self._reaper.completed(exit_))
        return ended

    def _not_on_record(self, exits: list[Exited]) -> list[Exited]:
        """Those that the supervisor before us did not come to write down; it may have, and no more than that.

        By the identity of the latest, not by the hour: wall clocks are set back.
        """
        recorded: set[str] = set()
        missed: list[Exited] = []
        for exit_ in reversed(exits):
            known = exit_.name in self._fleet.registry.everybody
            last = self._fleet.registry[exit_.name].last_exit if known else None
            if exit_.name in recorded or (last is not None and last.at == exit_.at):
                recorded.add(exit_.name)
            else:
                missed.append(exit_)
        return missed

    async def _hand_over(
        self, link: Link, living: Living, ended: set[str], group: anyio.abc.TaskGroup, *, resumed: bool
    ) -> list[Command]:
        """Gives each keeper what lives of it, and has started what is wanted: by the commands that are returned.

        `ended` are those that did so by themselves while nobody looked.
        """
        fleet = self._fleet
        started: list[Command] = []
        wanted = {name: fleet.registry[name].wanted if resumed else "up" for name in self._keepers}
        for name in link.copies.names:  # with those that were taken out of processes
            if wanted.get(name, "down") == "down":
                await link.release(name)
        for process in sorted(living.processes, key=lambda one: one.started):
            if keeper := self._keepers.get(process.name):
                keeper.tell(Adopted(process))
            else:
                logger.warning("%s is not in the team any more: its process %d is ended", process.name, process.pid)
                group.start_soon(_end_stranger, link, process.pid, self._loaded.settings.supervision.grace)
        alive = {process.name for process in living.processes if not process.stopping}
        draining = {process.name for process in living.processes if process.draining and not process.stopping}
        for name, keeper in self._keepers.items():
            if name in alive and wanted[name] == "down":
                keeper.tell(Command("stop", "was to be stopped"))
            elif name in alive and wanted[name] == "drained":
                keeper.tell(Command("drain", "was drained before"))  # its process may not have been told yet
            elif name in draining and resumed:
                keeper.tell(Command("start", "was asked for while no new process could be started"))
            elif name in alive or wanted[name] == "down" or fleet.stop.is_set():
                continue
            elif resumed and (cause := self._kept_down(keeper, name in ended)):
                await self._hold_place(link, keeper.config)
                keeper.tell(KeptDown(cause))
            else:
                started.append(Command("start", "the team was started"))
                keeper.tell(started[-1])
                if wanted[name] == "drained":
                    keeper.tell(Command("drain", "was drained before"))
        return started

    def _kept_down(self, keeper: Keeper, has_ended: bool) -> str | None:
        """How somebody ended whom the restart policy keeps down since then, or would have: that is not undone by a death of
        ours. None for whoever is to be started.
        """
        entry = self._fleet.registry[keeper.name]
        last = entry.last_exit
        if last is None or not (has_ended or is_kept_down(entry)):
            return None
        return last.cause if restart.is_kept_down(keeper.settings.restart, last.code) else None

    async def _hold_place(self, link: Link, config: ChildConfig) -> None:
        """Has a port of which nobody has a socket any more: whoever connects is told that nobody runs, as before."""
        if not link.copies.of(config.name):
            try:
                await link.hold(config.name, listen.bind(config.places))
            except (OSError, CannotStart) as error:
                link.copies.drop(config.name)
                logger.error("the port of %s cannot be had: %s", config.name, error)


async def end_left_behind(loaded: Loaded) -> int:
    """Ends the fork server and the specialists of a supervisor that is gone; returns how many processes there were."""
    grace = loaded.settings.supervision.grace + END_MARGIN
    found = await takeover.left_behind(loaded.dirs.state / pidfiles.FOLDER, set())
    server = pidfiles.read(loaded.dirs.state / pidfiles.FORK_SERVER)
    if server is not None:
        await survivors.end([server], grace + END_MARGIN)  # which ends those that it has
    await survivors.end(found, grace)
    return len(found) + (server is not None)


async def _watch_over(link: Link, pid: int) -> None:
    """Kills a fork server that does not answer: stopped or stuck, it can start nobody, and its death can be made good."""
    while True:
        await anyio.sleep(PING_EVERY)
        due = time.monotonic() + PONG_WITHIN
        with anyio.move_on_after(PONG_WITHIN) as patience:
            await link.ping()
        if patience.cancelled_caught and time.monotonic() - due < OWN_LATENESS:
            logger.error("the fork server (pid %d) does not answer for %g s and is killed", pid, PONG_WITHIN)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return


async def _vacated(process: Process) -> None:
    """Returns when a process that was asked to end does not listen any more."""
    while True:
        try:
            for listener in listen.bind(process.places):
                listener.close()
            return
        except OSError:
            await anyio.sleep(PORT_LOOK_EVERY)


async def _end_stranger(link: Link, pid: int, grace: float) -> None:
    await link.signal(pid, signal.SIGTERM)
    await anyio.sleep(grace + END_MARGIN)
    await link.signal(pid, signal.SIGKILL, group=True)
