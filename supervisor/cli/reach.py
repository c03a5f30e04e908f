"""Reaching the supervisor from a command, and what is known when it cannot be reached."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.control import Result, Status, StatusReport, SupervisorStatus
from protocol.errors import Refused
from supervisor.cli.exits import Exit, Failure, not_running
from supervisor.config import Loaded

if TYPE_CHECKING:
    import socket

    from protocol.client import ControlConnection

SYSTEM_SOCKET = Path("/run/chorus/control.sock")
GLANCE_WITHIN = 10.0  # seconds for a status; the supervisor answers in milliseconds, or it hangs


def sockets(loaded: Loaded, *, own: bool = False) -> list[Path]:
    """Where the control socket may be, best first: where ours is, where the supervisor said, where the system's is.

    `own` leaves out the system's.
    """
    found = [loaded.socket]
    try:
        found.append(Path((loaded.dirs.state / "socket").read_text().strip()))
    except OSError:
        pass  # never started here
    return list(dict.fromkeys(found if own else [*found, SYSTEM_SOCKET]))


@asynccontextmanager
async def supervisor(loaded: Loaded, *, own: bool = False) -> AsyncIterator[ControlConnection]:
    """A connection to the team's supervisor; raises Failure (exit 3) when it does not run."""
    from protocol.client import connect_control

    async with AsyncExitStack() as stack:
        for path in sockets(loaded, own=own):
            try:
                connection = await stack.enter_async_context(connect_control(path))
            except Refused:
                continue
            yield connection
            return
        raise nobody_answers()


async def report(loaded: Loaded, names: list[str] | None = None) -> StatusReport:
    """The state of the team, from its supervisor."""
    async with supervisor(loaded) as connection:
        result = await connection.call(Status(names=names))
    assert result.status is not None
    return result.status


def glance(loaded: Loaded, names: list[str] | None = None) -> StatusReport:
    """The same as `report` on a plain blocking socket: an event loop would be half of the start-up time of `status`.

    Raises Failure (exit 3) when no supervisor runs, and what it refuses as protocol.errors.
    """
    import socket

    for path in sockets(loaded):
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(GLANCE_WITHIN)
            try:
                link.connect(os.fspath(path))
            except OSError:
                continue
            try:
                return _ask_status(link, names)
            except TimeoutError:
                sentence = f"the supervisor does not answer within {GLANCE_WITHIN:g} s"
                raise Failure(sentence, Exit.TIMEOUT, remedy="chorus logs supervisor", code="timeout") from None
            except OSError:
                raise not_running("the supervisor ended before it had answered") from None
    raise nobody_answers()


def nobody_answers() -> Failure:
    """What is to be said where no supervisor can be reached."""
    try:
        SYSTEM_SOCKET.stat()
    except PermissionError:
        sentence = "no team of yours is running, and this machine's is for members of its group"
        remedy = "chorus up, or sudo usermod --append --groups chorus $USER and a new login"
        return Failure(sentence, Exit.NOT_RUNNING, remedy=remedy, code="not_running")
    except OSError:
        pass
    return not_running()


def _ask_status(link: socket.socket, names: list[str] | None) -> StatusReport:
    from protocol.codec import encode, parse_json, raise_for
    from protocol.control import decode_answer
    from protocol.framing import LineBuffer
    from protocol.messages import Error

    link.sendall(encode(Status(names=names)))
    lines = LineBuffer(None)
    while (line := lines.next_line()) is None:
        data = link.recv(65536)
        if not data:
            raise ConnectionError
        lines.feed(data)
    answer = parse_json(decode_answer, line)
    if isinstance(answer, Error):
        raise_for(answer)
    assert isinstance(answer, Result)
    assert answer.status is not None
    return answer.status


def last_report(loaded: Loaded) -> StatusReport | None:
    """The state of the team as the last supervisor wrote it, marked as down."""
    import msgspec

    from supervisor.fleet.registry import read_journal

    found = read_journal(loaded.dirs.state / "registry.json")
    if found is None:
        return None
    it = found.supervisor
    return msgspec.structs.replace(found, supervisor=SupervisorStatus(it.pid, None, "down", restarter=it.restarter))
