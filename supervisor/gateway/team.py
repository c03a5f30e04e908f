"""Who is in the team and how they are, as the supervisor tells it; without a supervisor, as it was last known.

A watch on the control socket is kept open, and made anew when it ends. Specialists live on without a supervisor, so that an old
picture is still good for asking them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
from msgspec.structs import replace

from protocol import names
from protocol.client import Connection, connect, connect_control
from protocol.control import (
    ABSENT,
    AnyAnswer,
    AnyControl,
    Result,
    Snapshot,
    SpecialistStatus,
    StatusReport,
    Transition,
    Watch,
)
from protocol.control import Status as AskStatus
from protocol.errors import NotFound, ProtocolError, Refused, Unavailable
from protocol.settings import GatewayConfig
from supervisor.team.chat import Member
from supervisor.team.routing import ANSWERING

logger = logging.getLogger("chorus.gateway")

MEET_WITHIN = 1.0  # seconds that the first picture may take; then the gateway serves with what it was configured with
AGAIN_AFTER = 0.5  # seconds between tries to reach a supervisor
ANSWERED_WITHIN = 5.0  # seconds a supervisor has for a look at the team
REMEMBERED = 256  # changes, more than can come in the time of a look
RENEW_AFTER = 0.05  # seconds in which changes are gathered into one look
ABSENT_HELP = {
    "stopped": "it is stopped: chorus start {0}",
    "failed": "it has failed: chorus status {0} says why",
    "draining": "it is draining: chorus start {0}",
}


class Team:
    """The picture of the team. Written by its own watch alone."""

    def __init__(self, config: GatewayConfig) -> None:
        self._socket = config.socket
        self.report: StatusReport | None = None
        self.is_told = False  # a supervisor tells us at this moment
        self.seq: int | None = None  # of the last change that the picture contains
        self._recent: deque[Transition] = deque(maxlen=REMEMBERED)
        self._specialists = {
            one.name: SpecialistStatus(
                name=one.name,
                ai_id=names.ai_id(one.name),
                host=one.host,
                port=one.port,
                state="ready",  # for all we know
                wanted="up",
            )
            for one in config.roster
        }
        self._hearers: list[Callable[[AnyAnswer], None]] = []
        self._met = anyio.Event()
        self._stale = anyio.Event()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keeps the picture until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch)
            group.start_soon(self._renew)
            with anyio.move_on_after(MEET_WITHIN):
                await self._met.wait()
            task_status.started()

    def hear(self, told: Callable[[AnyAnswer], None]) -> None:
        """Has somebody told of everything that the supervisor's watch says."""
        self._hearers.append(told)

    # -- who there is -------------------------------------------------------------------------------------------------------

    @property
    def specialists(self) -> list[SpecialistStatus]:
        return list(self._specialists.values())

    @property
    def answering(self) -> list[SpecialistStatus]:
        """Those who can be asked, in the roster's order."""
        return [one for one in self._specialists.values() if one.state in ANSWERING]

    def find(self, spelling: str) -> SpecialistStatus:
        """The specialist of a name in any spelling. Raises NotFound with the nearest ones."""
        found = self._specialists.get(names.canonical(spelling))
        if found is None:
            close = names.near(spelling, self._specialists)
            hint = f"did you mean {' or '.join(close)}?" if close else f"the team is {', '.join(self._specialists)}"
            raise NotFound(f"there is no specialist {spelling[:64]!r}: {hint}")
        return found

    def member(self, spelling: str) -> Member:
        """Where to ask a specialist. Raises NotFound, and Unavailable where it is known that it does not answer."""
        found = self.find(spelling)
        if found.state in ABSENT_HELP:
            raise Unavailable(f"{found.name} does not answer: {ABSENT_HELP[found.state].format(found.name)}")
        if not found.has_port:  # a stranger may have it, and a question is not for strangers
            raise Unavailable(f"{found.name} does not answer: {found.last_error}; {found.remedy}", retry_after=1.0)
        return Member(found.name, found.host, found.port)

    async def look(self) -> StatusReport | None:
        """The team at this moment, with its figures; None where no supervisor answers."""
        try:
            with anyio.fail_after(ANSWERED_WITHIN):
                return (await self.command(AskStatus())).status
        except (ProtocolError, TimeoutError):
            return None

    async def command(self, request: AnyControl) -> Result:
        """Has the supervisor do something. Raises what it refuses with, and Unavailable where none answers."""
        try:
            async with connect_control(self._socket) as connection:
                return await connection.call(request)
        except ProtocolError as error:
            if error.code:
                raise
            raise Unavailable(f"{error.sentence}: chorus up", retry_after=AGAIN_AFTER) from None

    # -- the watch ------------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            try:
                async with connect_control(self._socket) as connection:
                    async for told in connection.ask(Watch()):
                        self._take(told)
            except ProtocolError as error:
                if self.is_told:
                    logger.warning("the supervisor does not tell any more: %s", error.sentence)
            self.is_told = False
            self._met.set()  # nobody is there to be waited for
            await anyio.sleep(AGAIN_AFTER)

    def _take(self, told: AnyAnswer) -> None:
        match told:
            case Snapshot():
                if not self.is_told:
                    logger.info("the supervisor (pid %s) tells of the team", told.status.supervisor.pid)
                self.is_told = True
                self.seq = told.seq
                self._recent.clear()
                self._picture(told.status)
                self._met.set()
            case Transition():
                self.seq = told.seq
                self._recent.append(told)
                self._move(told)
                self._stale.set()
        for hearer in self._hearers:
            hearer(told)

    def _picture(self, report: StatusReport) -> None:
        self.report = report
        self._specialists = {one.name: one for one in report.specialists}

    def _move(self, change: Transition) -> None:
        """What a change says by itself is so at once; the rest is looked for."""
        moved = {"state": change.to, "pid": change.pid, "attempt": change.attempt, "next_due": change.next_due}
        one = self._specialists.get(change.name)
        if one is not None and change.to == ABSENT:
            del self._specialists[change.name]
        elif one is not None:
            since = change.at if change.from_ != change.to else one.since
            self._specialists[change.name] = replace(one, since=since, **moved)

    async def _renew(self) -> None:
        """Looks at the team after changes: they say that something is otherwise, not everything that is."""
        while True:
            await self._stale.wait()
            await anyio.sleep(RENEW_AFTER)
            self._stale = anyio.Event()
            await self.renewed()

    async def renewed(self) -> bool:
        """Looks at the team, and has it in the picture; False where no supervisor answers."""
        seen = self.seq or 0
        report = await self.look()
        if report is None:
            return False
        self._picture(report)
        for change in self._recent:
            if change.seq > seen:
                self._move(change)  # it may have been told after the look was made, and then it is not in it
        return True


@asynccontextmanager
async def reached(member: Member) -> AsyncIterator[Connection]:
    """A connection to a specialist. Raises Unavailable with what to do where nobody listens."""
    try:
        async with connect(member.host, member.port) as connection:
            yield connection
    except Refused as error:
        sentence = f"{member.name} does not answer: {error.sentence}; chorus status {member.name} says why"
        raise Unavailable(sentence, retry_after=AGAIN_AFTER) from None
