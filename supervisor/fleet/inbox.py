"""What can happen to a specialist, and the queue in which all of it reaches its keeper, one after the other."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal

import anyio
from msgspec import Struct, field

from protocol.errors import Busy
from protocol.settings import ChildConfig, Supervision
from supervisor.fleet.calls import Exited, Process
from supervisor.fleet.health import Verdict
from supervisor.fleet.systemctl import Unit

SIZE = 1024
MOST_COMMANDS = 512  # waiting; the rest of the inbox is for exits, of which none may be lost
MOST_VERDICTS = 64  # waiting; the next verdict says the same


class Command(Struct, frozen=True):
    """What an operator asks. `grace` only for stop: seconds for what is under way.

    `taken` is set when it has been taken up, or when there is nobody any more to do that.
    """

    verb: Literal["start", "stop", "restart", "drain"]
    cause: str
    grace: float | None = None
    taken: anyio.Event = field(default_factory=anyio.Event)


class Heard(Struct, frozen=True):
    """A verdict of the health check of one process."""

    pid: int
    verdict: Verdict


class Due(Struct, frozen=True):
    """The pause before the next try is over; a later pause has a higher number."""

    number: int


class Adopted(Struct, frozen=True):
    """A process was there before this supervisor."""

    process: Process


class KeptDown(Struct, frozen=True):
    """Its restart policy kept it down before this keeper was there, or would have; `cause` is how it had ended."""

    cause: str


class Reconfigured(Struct, frozen=True):
    """The configuration was read again. `changed` is what a process must be told anew, in words; none where only we go by it.

    `lets_go` where the old process must leave its port before the next one is to be had. `taken` as in Command.
    """

    config: ChildConfig
    settings: Supervision
    changed: list[str] = []
    lets_go: bool = False
    taken: anyio.Event = field(default_factory=anyio.Event)


class Seen(Struct, frozen=True):
    """What systemd knows of a specialist, where systemd is the restarter. `orders` is how many it had been given by then."""

    unit: Unit
    orders: int


Happening = Command | Exited | Heard | Due | Adopted | KeptDown | Reconfigured | Seen


class Inbox:
    """The queue of one keeper. Anybody puts in; the keeper alone takes out, and is the only one to close it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_closed = False
        self._send, self._receive = anyio.create_memory_object_stream[Happening](SIZE)

    def put(self, happening: Happening, *, urgent: bool = False) -> None:
        """Never waits. While the fork server is slow to answer, verdicts are left out.

        Raises Busy for a command when hundreds wait already, unless it is urgent: the end of the team is.
        """
        if self.is_closed:
            _set_taken(happening)
            return
        waiting = self._send.statistics().current_buffer_used
        if isinstance(happening, Heard) and waiting >= MOST_VERDICTS:
            return
        if isinstance(happening, Command) and waiting >= MOST_COMMANDS and not urgent:
            raise Busy(f"{waiting} commands wait for {self.name} already", retry_after=1.0)
        self._send.send_nowait(happening)

    async def happenings(self) -> AsyncGenerator[Happening]:
        """What is put in, in order; a command counts as taken when the next one is asked for."""
        async for happening in self._receive:
            try:
                yield happening
            finally:
                _set_taken(happening)

    def close(self) -> None:
        """Nobody waits for what is not taken up any more."""
        self.is_closed = True
        while self._receive.statistics().current_buffer_used:
            _set_taken(self._receive.receive_nowait())
        self._send.close()
        self._receive.close()


def _set_taken(happening: Happening) -> None:
    if isinstance(happening, Command | Reconfigured):
        happening.taken.set()
