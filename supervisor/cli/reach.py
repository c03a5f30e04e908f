"""Reaching the supervisor from a command, and what is known when it cannot be reached."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from protocol.client import ControlConnection, connect_control
from protocol.control import Status, StatusReport, SupervisorStatus
from protocol.errors import Refused
from supervisor.cli.exits import not_running
from supervisor.config import Loaded

SYSTEM_SOCKET = Path("/run/chorus/control.sock")


def sockets(loaded: Loaded) -> list[Path]:
    """Where the control socket may be, best first: where ours is, where the supervisor said, where the system's is."""
    found = [loaded.socket]
    try:
        found.append(Path((loaded.dirs.state / "socket").read_text().strip()))
    except OSError:
        pass  # never started here
    return list(dict.fromkeys([*found, SYSTEM_SOCKET]))


@asynccontextmanager
async def supervisor(loaded: Loaded) -> AsyncIterator[ControlConnection]:
    """A connection to the team's supervisor; raises Failure (exit 3) when it does not run."""
    async with AsyncExitStack() as stack:
        for path in sockets(loaded):
            try:
                connection = await stack.enter_async_context(connect_control(path))
            except Refused:
                continue
            yield connection
            return
        raise not_running()


async def report(loaded: Loaded, names: list[str] | None = None) -> StatusReport:
    """The state of the team, from its supervisor."""
    async with supervisor(loaded) as connection:
        result = await connection.call(Status(names=names))
    assert result.status is not None
    return result.status


def last_report(loaded: Loaded) -> StatusReport | None:
    """The state of the team as the last supervisor wrote it, marked as down."""
    import msgspec

    from supervisor.fleet.registry import read_journal

    found = read_journal(loaded.dirs.state / "registry.json")
    if found is None:
        return None
    return msgspec.structs.replace(found, supervisor=SupervisorStatus(found.supervisor.pid, None, "down"))
