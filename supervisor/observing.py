"""The fleet where systemd is the restarter: nothing is forked, everybody is observed, and what is asked is handed on.

The specialists are systemd's. That this supervisor dies, or is ended by a signal, changes nothing for them: systemd stops its
units itself and in its order, and would wait for us while we wait for it. `chorus down` takes them down.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import anyio
import anyio.abc

from daemon.notify import Systemd
from protocol.settings import ChildConfig, Supervision
from supervisor.config import Loaded, supervision
from supervisor.fleet import systemctl
from supervisor.fleet.inbox import Command
from supervisor.fleet.marks import Marks
from supervisor.fleet.observer import Observer
from supervisor.operations import GIVE_UP_AFTER, Fleet
from supervisor.places import private_folder
from supervisor.tenure import end_left_behind


class Observation:
    """The observers, as long as this supervisor lives. What a Tenure is where chorus itself is the restarter."""

    def __init__(self, loaded: Loaded, fleet: Fleet, systemd: Systemd) -> None:
        self._loaded = loaded
        self._fleet = fleet
        self._systemd = systemd
        self._marks = Marks(loaded.dirs.logs)

    async def run(self, configs: Sequence[ChildConfig], ready: Callable[[], None], *, resumed: bool) -> None:
        """Observes the specialists until asked to stop; where an operator asked, systemd is told to stop them.

        `resumed` leaves everybody as systemd has them; otherwise all are started. `ready` is called when the team can be asked.
        """
        fleet = self._fleet
        await end_left_behind(self._loaded)  # of the time before systemd was the restarter
        exits = private_folder(self._loaded.dirs.runtime / systemctl.EXITS)
        self._units = systemctl.Systemctl(systemctl.own_manager(os.environ), exits)
        async with anyio.create_task_group() as self._group:
            for config in configs:
                observer = self.keep(config, supervision(self._loaded, config.name))
                if not resumed and not fleet.stop.is_set():
                    observer.tell(Command("start", "the team was started"))
            fleet.ground = self
            ready()
            self._group.start_soon(self._marks.cap, ())  # the specialists' is systemd's
            await fleet.stop.wait()
            self._systemd.say("STOPPING=1")
            if fleet.told:
                with anyio.move_on_after(
                    GIVE_UP_AFTER
                ):  # where systemd refuses, it is said in the status, and they stay
                    await fleet.take_down()
                fleet.went_down()
            else:
                fleet.registry.happened("ended by a signal; the specialists are systemd's and stay")
                fleet.down.set()
            self._group.cancel_scope.cancel()

    def keep(self, config: ChildConfig, settings: Supervision) -> Observer:
        """An observer of somebody, observing."""
        observer = Observer(config, settings, self._units, self._fleet.registry, self._marks.write)
        self._fleet.keepers[config.name] = observer
        self._group.start_soon(observer.run)
        return observer

    async def settle(self, supervision: Supervision) -> None:
        """Nothing: what the settings say of restarts is in the units."""
