"""Everybody as systemd's units: what systemd knows of them, and what it is asked to do. Nothing else calls systemctl.

How a process ended is not asked of systemd, which forgets it as soon as it has started the next one. The unit writes it down
before that, in ExecStopPost=, into a file of its name: $EXIT_CODE, $EXIT_STATUS and $SERVICE_RESULT.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import anyio
from msgspec import Struct

from protocol.names import GATEWAY
from supervisor.errors import NoServiceManager, SystemdRefused
from supervisor.fleet.calls import Exited

Scope = Literal["--user", "--system"]

EXITS = "exits"  # the folder below the runtime folder where units write how they ended last
ANSWER_WITHIN = 20.0  # seconds for one call of systemctl, which never waits for a job here
PROPERTIES = "ActiveState,Job,MainPID,NRestarts,Result"


class Unit(Struct, frozen=True):
    """A service unit at one moment. `active` and `socket` are the ActiveState of itself and of its socket unit.

    `pid` is its main process, `restarts` counts those of systemd's own accord, `is_busy` that a job of systemd's is under way.
    """

    active: str
    is_busy: bool
    pid: int | None
    restarts: int
    result: str
    socket: str
    socket_result: str


def service(name: str) -> str:
    return f"{_unit(name)}.service"


def socket(name: str) -> str:
    return f"{_unit(name)}.socket"


def _unit(name: str) -> str:
    return "chorus-gateway" if name == GATEWAY else f"specialist@{name}"


def own_manager(environ: Mapping[str, str]) -> Scope:
    """The systemd whose unit we are. Raises NoServiceManager where we are none."""
    if environ.get("MANAGERPID"):
        return "--user"
    if environ.get("INVOCATION_ID"):
        return "--system"
    raise NoServiceManager(
        "systemd is to restart the specialists (supervision.restarter), and this supervisor is no unit of systemd: "
        "chorus service install --restarter systemd makes it one"
    )


class Systemctl:
    """The units of one manager. `exits` is the folder in which they write how they ended."""

    def __init__(self, scope: Scope, exits: Path) -> None:
        self.scope = scope
        self._exits = exits

    async def look(self, name: str) -> Unit:
        """What systemd knows of a specialist now."""
        told = await self._call("show", f"--property={PROPERTIES}", service(name), socket(name))
        its, of_socket = (dict(line.split("=", 1) for line in block.splitlines()) for block in told.split("\n\n"))
        return Unit(
            active=its["ActiveState"],
            is_busy=bool(its.get("Job")),
            pid=int(its.get("MainPID", 0)) or None,
            restarts=int(its.get("NRestarts", 0)),
            result=its.get("Result", ""),
            socket=of_socket["ActiveState"],
            socket_result=of_socket.get("Result", ""),
        )

    async def start(self, name: str) -> None:
        """Has systemd open the port and start a process. It returns at once, as the others do."""
        await self._call("start", "--no-block", socket(name), service(name))

    async def stop(self, name: str) -> None:
        """The process, and the port too: an open one would start it again."""
        await self._call("stop", "--no-block", socket(name), service(name))

    async def restart(self, name: str) -> None:
        await self._call("restart", "--no-block", service(name))

    async def forgive(self, name: str) -> None:
        """What went wrong before counts no more: without this, systemd refuses what an operator asks too often."""
        try:
            await self._call("reset-failed", socket(name), service(name))
        except SystemdRefused:
            pass  # it says so of a unit that it has not loaded yet

    async def signal(self, name: str, which: signal.Signals) -> None:
        """Signals the main process of a specialist."""
        await self._call("kill", "--kill-who=main", f"--signal={which.name}", service(name))

    def ending(self, name: str) -> tuple[Exited, str] | None:
        """How the last process that ended did so, and systemd's word for it; None where that was not written down.

        Its pid is not known: 0 stands for it.
        """
        file = self._exits / name
        try:
            at = file.stat().st_mtime
            how, status, result = file.read_text().split()
            code = int(status) if how == "exited" else None
        except (OSError, ValueError):
            return None
        number = None if how == "exited" else signal.Signals.__members__.get(f"SIG{status}")
        return Exited(name=name, pid=0, code=code, signal=number, at=at), result

    async def _call(self, *words: str) -> str:
        """Raises SystemdRefused with what systemctl says."""
        try:
            with anyio.fail_after(ANSWER_WITHIN):
                done = await anyio.run_process(["systemctl", self.scope, "--no-ask-password", *words], check=False)
        except TimeoutError:
            raise SystemdRefused(f"systemctl {words[0]} has not answered for {ANSWER_WITHIN:g} s") from None
        except OSError as error:
            raise SystemdRefused(f"systemctl cannot be called: {error.strerror}") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"code {done.returncode}"]
            raise SystemdRefused(f"systemctl {words[0]}: {said[0]}")
        return done.stdout.decode()
