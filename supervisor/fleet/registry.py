"""Who exists, where, and how they are: the specialists and the gateway. One writer for each of them: its keeper.

Readers get a snapshot and then every change, or an explicit gap. The registry is also written to disk, so that `status` has
something to say when the supervisor is down and the next supervisor knows what went before; every change is a record of the
event log beside it before anybody is told.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.abc
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from protocol import __version__
from protocol.control import (
    ABSENT,
    DISABLED,
    HOUSE,
    BackendStatus,
    Configured,
    Entry,
    Gap,
    GatewayStatus,
    KeptStatus,
    Snapshot,
    SpecialistStatus,
    StatusReport,
    SupervisorStatus,
    Transition,
)
from protocol.names import GATEWAY
from protocol.settings import ChildConfig, GatewayConfig, Restarter
from supervisor.fleet.eventlog import FILE, EventLog
from supervisor.fleet.lifecycle import State

logger = logging.getLogger("chorus.supervisor")

WATCHER_BACKLOG = 1024  # changes a watcher may be behind before it is told of a gap
JOURNAL_AFTER = 0.05  # seconds in which changes are gathered into one write


E = TypeVar("E", bound=KeptStatus)


class Registry:
    """The state of the team. `uptime` is held as the Unix time of a start until it is reported."""

    def __init__(
        self,
        journal: Path,
        entries: Sequence[Entry],
        backend: BackendStatus,
        restarter: Restarter = "chorus",
    ) -> None:
        self.journal = journal
        self.restarter = restarter
        self.events = EventLog(journal.with_name(FILE))
        self._entries: dict[str, Entry] = {one.name: one for one in entries}
        self._backend = backend
        self._configuration: Configured | None = None
        self._born = time.time()
        self._state = "running"
        self._notice: str | None = None
        self._remedy: str | None = None
        self._watchers: list[Watcher] = []
        self._dirty = anyio.Event()
        self._pressing = anyio.Event()
        self._written = anyio.Event()
        self._changed = anyio.Event()

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    @property
    def everybody(self) -> list[str]:
        """The names of all who are kept."""
        return list(self._entries)

    @property
    def names(self) -> list[str]:
        """Those of the specialists."""
        return [one.name for one in self.specialists]

    @property
    def specialists(self) -> list[SpecialistStatus]:
        return [one for one in self._entries.values() if isinstance(one, SpecialistStatus)]

    def report(self, names: Collection[str] | None = None) -> StatusReport:
        """Everything at this moment, or only some of the specialists."""
        now = time.time()
        chosen = [one for one in self.specialists if names is None or one.name in names]
        gateway = self._entries.get(GATEWAY)
        assert not isinstance(gateway, SpecialistStatus), "nobody else is called so"
        return StatusReport(
            supervisor=SupervisorStatus(
                pid=os.getpid(),
                uptime=round(now - self._born, 3),
                state=self._state,
                version=__version__,
                configuration=self._configuration,
                restarter=self.restarter,
                notice=self._notice,
                remedy=self._remedy,
            ),
            gateway=_aged(gateway, now) if gateway else GatewayStatus(url=None, state=DISABLED, wanted="down"),
            backend=self._backend,
            specialists=[_aged(one, now) for one in chosen],
        )

    def add(self, newcomer: Entry, cause: str) -> None:
        """Takes somebody new, at the end."""
        self._entries[newcomer.name] = msgspec.structs.replace(newcomer, state=ABSENT)
        self.move(newcomer.name, newcomer.state, cause)

    def remove(self, name: str, cause: str) -> None:
        """Forgets somebody of whom no process lives."""
        self.move(name, ABSENT, cause)
        del self._entries[name]

    def arrange(self, order: list[str]) -> None:
        """Has the team in this order; who is not in it comes last."""
        found = {name: self._entries[name] for name in order if name in self._entries}
        self._entries = found | self._entries
        self.touch()

    def configured(self, configuration: Configured) -> None:
        """Takes which configuration is in force."""
        self._configuration = configuration
        self.touch()

    def note(self, name: str, **fields: Any) -> None:
        """Takes figures that are no change of state."""
        self._entries[name] = msgspec.structs.replace(self._entries[name], **fields)

    def want(self, name: str, wanted: str) -> None:
        """Takes what an operator wants: journalled before anybody is told, since the next supervisor goes by it."""
        if self._entries[name].wanted != wanted:
            self.note(name, wanted=wanted)
            self.write()
        self.touch()

    def move(self, name: str, to: str, cause: str, *, old_pid: int | None = None, **fields: Any) -> None:
        """Takes a change of state: journalled, and told to everybody who watches. Who waits for a next try says until when.

        `old_pid` only where the registry cannot know which process this is about.
        """
        before = self._entries[name]
        now = time.time()
        fields = {"next_due": None, "since": now if before.state != to else before.since} | fields
        after = self._entries[name] = msgspec.structs.replace(before, state=to, **fields)
        ended = after.last_exit if "last_exit" in fields else None
        if ended:
            self._pressing.set()  # what is counted is not counted again, or forgotten, by the next supervisor
        self._happened(
            Transition(
                seq=self.events.seq + 1,
                name=name,
                from_=before.state,
                to=to,
                cause=cause,
                at=now,
                pid=after.pid,
                old_pid=old_pid or (before.pid if before.pid != after.pid else None),
                code=ended.code if ended else None,
                signal=ended.signal if ended else None,
                attempt=after.attempt,
                next_due=after.next_due,
                monotonic=time.monotonic(),
            )
        )

    def came_up(self, before: StatusReport | None) -> None:
        """Says that this supervisor is there, before it has done anything. `before` is what the last one wrote."""
        cause = f"chorus {__version__} started"
        if before is not None and before.supervisor.state != "down":
            cause += f"; the supervisor before it (pid {before.supervisor.pid}) had ended without going down"
        self._tell_house("down", cause)

    def happened(self, cause: str) -> None:
        """Takes something that happened to the house and not to one of its own: a fork server lost, a configuration read."""
        self._tell_house(self._state, cause)

    def warn(self, notice: str | None, remedy: str | None = None) -> None:
        """Takes what a person should know of the supervisor itself as long as it is so; None when it is over."""
        self._notice, self._remedy = notice, remedy
        self.touch()

    def _tell_house(self, before: str, cause: str) -> None:
        self._happened(
            Transition(
                seq=self.events.seq + 1,
                name=HOUSE,
                from_=before,
                to=self._state,
                cause=cause,
                at=time.time(),
                pid=os.getpid(),
                monotonic=time.monotonic(),
            )
        )

    def _happened(self, transition: Transition) -> None:
        """On disk first: what anybody was told is known to the next supervisor too."""
        self.events.append(transition)
        for watcher in self._watchers:
            watcher.tell(transition)
        self.touch()

    def set_backend(self, backend: BackendStatus) -> None:
        self._backend = backend

    def set_state(self, state: str) -> None:
        """The supervisor's own state: stopping or down."""
        before, self._state = self._state, state
        if before != state:
            self._tell_house(before, _CAUSES[state])

    async def wait_for(self, holds: Callable[[], bool]) -> None:
        """Returns when the condition holds; it is looked at after every change."""
        while not holds():
            await self._changed.wait()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Watcher]:
        """A reader of every change from here on."""
        watcher = Watcher(self)
        self._watchers.append(watcher)
        try:
            yield watcher
        finally:
            watcher.close()
            self._watchers.remove(watcher)

    def snapshot(self) -> Snapshot:
        return Snapshot(seq=self.events.seq, status=self.report())

    async def run(self) -> None:
        """Writes the journal after changes, until cancelled; then once more."""
        try:
            while True:
                await self._dirty.wait()
                with anyio.move_on_after(JOURNAL_AFTER):
                    await self._pressing.wait()
                self._dirty, self._pressing = anyio.Event(), anyio.Event()
                self.write()
                self._written.set()
                self._written = anyio.Event()
        finally:
            self.write()

    async def journalled(self) -> None:
        """Returns when what has changed until now was written, or could not be."""
        if self._dirty.is_set():
            await self._written.wait()

    def write(self) -> None:
        """Writes the journal now. A disk that fails is logged, and the team goes on."""
        waiting = self.journal.with_suffix(".new")
        try:
            self.journal.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            waiting.write_bytes(msgspec.json.encode(self.report()))
            waiting.replace(self.journal)
        except OSError as error:
            logger.error("cannot write the registry to %s: %s", self.journal, error)

    def touch(self) -> None:
        """Has the journal written, and conditions that others wait for looked at."""
        self._dirty.set()
        self._changed.set()
        self._changed = anyio.Event()


class Watcher:
    """One reader of changes. Slow ones are told how many they missed and are given a new snapshot."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._missed = 0
        self._send: MemoryObjectSendStream[Transition]
        self._receive: MemoryObjectReceiveStream[Transition]
        self._send, self._receive = anyio.create_memory_object_stream[Transition](WATCHER_BACKLOG)

    def tell(self, transition: Transition) -> None:
        try:
            self._send.send_nowait(transition)
        except anyio.WouldBlock:
            self._missed += 1
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            pass  # stopped, or its reader is gone

    def stop(self) -> None:
        """Nothing more is told; what was told is still read."""
        self._send.close()

    def close(self) -> None:
        self._send.close()
        self._receive.close()

    async def changes(self) -> AsyncGenerator[Snapshot | Transition | Gap]:
        """A snapshot, then every change, until stopped."""
        with self._receive:
            yield self._registry.snapshot()
            while True:
                if self._missed and not self._receive.statistics().current_buffer_used:
                    missed, self._missed = self._missed, 0
                    yield Gap(missed=missed)
                    yield self._registry.snapshot()
                try:
                    yield await self._receive.receive()
                except anyio.EndOfStream:
                    return


_CAUSES = {"stopping": "asked to go down", "down": "everybody has ended"}


def newcomer(config: ChildConfig) -> Entry:
    """The entry of somebody of whom nothing is known but the configuration."""
    told = {"state": State.STOPPED.value, "since": time.time(), **told_of(config)}
    if isinstance(config, GatewayConfig):
        return GatewayStatus(**told)
    return SpecialistStatus(name=config.name, ai_id=config.ai_id, **told)


def told_of(config: ChildConfig) -> dict[str, Any]:
    """What an entry says of the configuration, by the names of its fields."""
    if isinstance(config, GatewayConfig):
        return {"url": config.url}
    host, port = config.places[0]
    return {"host": host, "port": port, "description": config.description}


def is_kept_down(entry: KeptStatus) -> bool:
    """Whether somebody's restart policy has it that only an operator starts it again."""
    return entry.state == State.FAILED.value and entry.next_due is None and entry.wanted != "down"


def read_journal(journal: Path) -> StatusReport | None:
    """What the last supervisor wrote, or None where there is nothing that can be read."""
    try:
        return msgspec.json.decode(journal.read_bytes(), type=StatusReport)
    except (OSError, msgspec.MsgspecError):
        return None


def _aged(one: E, now: float) -> E:
    """With its uptime, which is kept as the Unix time of its start."""
    if one.uptime is None:
        return one
    return msgspec.structs.replace(one, uptime=round(max(0.0, now - one.uptime), 3))
