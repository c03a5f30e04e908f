"""The team over HTTP: who there is, how each of them is, and what an operator does with one of them.

The field names are those of `chorus status --json`. What is done goes through the supervisor, and goes on when the caller
leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from msgspec import Struct
from msgspec.structs import asdict, fields

from protocol import names
from protocol.control import (
    AnyControl,
    BackendStatus,
    Drain,
    GatewayStatus,
    Restart,
    SpecialistStatus,
    Start,
    Stop,
    SupervisorStatus,
)
from protocol.errors import ProtocolError, Unavailable
from protocol.messages import Info, InfoResponse
from supervisor.gateway.members import replied
from supervisor.gateway.operation import Answer, Call
from supervisor.gateway.problem import Conflict

if TYPE_CHECKING:
    from supervisor.gateway.team import Team

INFO_WITHIN = 2.0  # seconds a specialist has to say who it is
UNTOLD = "no supervisor answers: this is the team as it was last known; chorus up"


class Specialist(SpecialistStatus, frozen=True, kw_only=True):
    """One of the team, by the fields of its status. `id` and `specialist_id` are what it is called here."""

    id: str
    specialist_id: str


class Picture(Struct, frozen=True, kw_only=True):
    """The team at one moment. Where no supervisor tells of it, `note` says so, and the rest is old."""

    specialists: list[Specialist]
    supervisor: SupervisorStatus | None
    gateway: GatewayStatus | None
    backend: BackendStatus | None
    note: str | None


class Detail(Specialist, frozen=True, kw_only=True):
    """One of the team, with what it says of itself: `info`, or why it does not."""

    info: InfoResponse | None
    info_error: str | None
    note: str | None


class CommandQuery(Struct, frozen=True):
    """`wait` is whether to wait until it is done, or only until it is begun."""

    wait: bool = True


class Done(Struct, frozen=True):
    """What became of a command: the pids before and after, and the milliseconds in which nobody accepted."""

    name: str
    specialist_id: str
    command: str
    old_pid: int | None
    new_pid: int | None
    down_ms: float | None


# -- routes -------------------------------------------------------------------------------------------------------


async def list_all(call: Call[None]) -> Answer:
    """Everybody, as of now."""
    team = call.house.team
    return picture(team, is_told=await team.renewed())


async def show(call: Call[None]) -> Answer:
    """One of them, as of now, and what it says of itself."""
    team = call.house.team
    is_told = await team.renewed()
    one = team.find(call.part())
    info, trouble = await _info(team, one.name)
    told = entry(one)
    return Detail(
        **{field.name: getattr(told, field.name) for field in fields(Specialist)},
        info=info,
        info_error=trouble,
        note=None if is_told else UNTOLD,
    )


async def start(call: Call[None]) -> Answer:
    """Starts one that is not running, or has it take requests again."""
    return await _command(call, "start", lambda asked, wait: Start(names=asked, wait=wait))


async def stop(call: Call[None]) -> Answer:
    """Stops one: what is under way is finished first, its port is closed."""
    return await _command(call, "stop", lambda asked, wait: Stop(names=asked, wait=wait))


async def restart(call: Call[None]) -> Answer:
    """Puts a new process in the place of one; nobody is refused meanwhile."""
    return await _command(call, "restart", lambda asked, wait: Restart(names=asked, wait=wait))


async def drain(call: Call[None]) -> Answer:
    """Has one stay up and refuse new requests, until it is started or stopped."""
    return await _command(call, "drain", lambda asked, wait: Drain(names=asked, wait=wait))


# -- the team as it is told ---------------------------------------------------------------------------------------


def picture(team: Team, *, is_told: bool) -> Picture:
    """The team as this process knows it."""
    report = team.report
    return Picture(
        specialists=[entry(one) for one in team.specialists],
        supervisor=report.supervisor if report else None,
        gateway=report.gateway if report else None,
        backend=report.backend if report else None,
        note=None if is_told else UNTOLD,
    )


def entry(one: SpecialistStatus) -> Specialist:
    called = names.specialist_id(one.name)
    return Specialist(**asdict(one), id=called, specialist_id=called)


async def _info(team: Team, name: str) -> tuple[InfoResponse | None, str | None]:
    try:
        with anyio.fail_after(INFO_WITHIN):
            return await replied(team.member(name), Info(), InfoResponse), None
    except ProtocolError as error:
        return None, error.sentence
    except TimeoutError:
        return None, f"it does not answer within {INFO_WITHIN:g} s"


async def _command(call: Call[None], what: str, request: Any) -> Answer:
    one = call.house.team.find(call.part())  # one name and no glob, and none that is not a specialist's
    query: CommandQuery = call.query
    asked: AnyControl = request([one.name], query.wait)
    result = await call.house.team.command(asked)
    if result.failed:
        raise Conflict(f"{one.name}: {result.failed[0].error}")
    if not result.changed:
        raise Unavailable(f"the supervisor did nothing with {one.name}: chorus status", retry_after=1.0)
    [outcome] = result.changed
    return Done(
        name=one.name,
        specialist_id=names.specialist_id(one.name),
        command=what,
        old_pid=outcome.old_pid,
        new_pid=outcome.new_pid,
        down_ms=outcome.down_ms,
    )
