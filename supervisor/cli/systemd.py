"""One manager of systemd, the machine's or this user's, asked through its own commands."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from supervisor.units import Scope

BOOTED = Path("/run/systemd/system")  # sd_booted(3)
LINGERING = Path("/var/lib/systemd/linger")


class ServiceManager:
    """What a command asks of one scope's manager; it waits for the answer. The supervisor's own way is fleet/systemctl.py."""

    def __init__(self, scope: Scope) -> None:
        self.flags = ["--user"] if scope is Scope.USER else []
        self._is_user = scope is Scope.USER

    def words(self, *args: str) -> list[str]:
        return ["systemctl", *self.flags, *args]

    def journal(self, unit: str) -> str:
        """The command that shows a unit's journal. --user-unit finds it also where users have no journal of their own."""
        return f"journalctl --user-unit {unit}" if self._is_user else f"journalctl -u {unit}"

    def why_not(self) -> str | None:
        """Why there is no such manager; None where there is."""
        if not BOOTED.is_dir() or shutil.which("systemctl") is None:
            return "systemd does not run this machine"
        done = self._run("show", "--property=Version")
        if done.returncode == 0:
            return None
        return f"the {'user' if self._is_user else 'system'} manager of systemd does not answer: {_reason(done)}"

    def forget(self, units: list[str]) -> None:
        """That they have failed; where none has, nothing."""
        self._run("reset-failed", *units)

    def state(self, unit: str) -> dict[str, str]:
        """LoadState, ActiveState, SubState, MainPID and StatusText; a unit that nobody knows is inactive."""
        names = ("LoadState", "ActiveState", "SubState", "MainPID", "StatusText")
        done = self._run("show", unit, *(f"--property={name}" for name in names))
        return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)

    def _run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.words(*args), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def lingers(user: str) -> bool:
    """Whether a user's manager is there while the user is not logged in."""
    return (LINGERING / user).exists()


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join(done.stderr.split()) or f"exit code {done.returncode}"
