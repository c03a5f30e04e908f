"""What the team's units have written to systemd's journal, as records: read by journalctl, which knows who may read what.

Whether the supervisor writes there is found out from /proc while it runs, and afterwards from the unit that is installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from supervisor.config import Loaded
from supervisor.fleet.systemctl import service
from supervisor.records import OUTPUT, Record

HOUSE = "supervisor"
SYSTEM_UNIT = Path("/etc/systemd/system/chorus.service")
SYSTEM_LOGS = Path("/var/log/chorus")  # LogsDirectory= of that unit
LEVELS = {7: "DEBUG", 6: "INFO", 5: "INFO", 4: "WARNING", 3: "ERROR"}  # syslog(3); what is graver is CRITICAL


class Unit(Struct, frozen=True):
    """The supervisor's unit, and whether it is one of a user's manager."""

    name: str
    is_users: bool

    @property
    def line(self) -> str:
        """The command that shows what it writes, for people."""
        return f"journalctl {self.flag} {self.name} -f"

    @property
    def flag(self) -> str:
        # Not `--user -u`: without a persistent journal there is none of users, and their records are in the system's.
        return "--user-unit" if self.is_users else "--unit"


class _Entry(Struct, frozen=True):
    """A record as journalctl has it: what is no text is a list of bytes, what is too long is null (journalctl(1))."""

    message: str | list[int] | None = msgspec.field(name="MESSAGE", default=None)
    priority: str = msgspec.field(name="PRIORITY", default="6")
    at: str = msgspec.field(name="__REALTIME_TIMESTAMP", default="0")
    cursor: str = msgspec.field(name="__CURSOR", default="")
    system_unit: str | None = msgspec.field(name="_SYSTEMD_UNIT", default=None)
    user_unit: str | None = msgspec.field(name="_SYSTEMD_USER_UNIT", default=None)
    about_system_unit: str | None = msgspec.field(name="UNIT", default=None)
    about_user_unit: str | None = msgspec.field(name="USER_UNIT", default=None)


_decode = msgspec.json.Decoder(_Entry).decode


class Journal:
    """The journal of the team's units, read for some names. `close` it."""

    def __init__(self, unit: Unit, names: Sequence[str]) -> None:
        self.unit = unit
        self._names = set(names)
        units = [unit.name if name == HOUSE else service(name) for name in names]
        self._call = ["journalctl", "--quiet", "--output=json", *(f"{unit.flag}={one}" for one in units)]
        self._cursor = ""
        self._following: subprocess.Popen[bytes] | None = None
        self._partial = b""

    def log_folder(self, loaded: Loaded) -> Path:
        """Where the files are that belong to it: the machine's, where we have no team of our own."""
        return loaded.dirs.logs if self.unit.is_users or loaded.dirs.logs.is_dir() else SYSTEM_LOGS

    def existing(self, limit: int | None, earliest: float) -> list[Record]:
        """The last records, oldest first; none where they may not be read."""
        words = [f"--lines={'all' if limit is None else limit}", *([f"--since=@{earliest:.3f}"] if earliest else [])]
        self._began = time.time()
        try:
            done = subprocess.run([*self._call, *words], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        except OSError:
            return []  # no journalctl here
        return self._records(done.stdout.splitlines())

    def follow(self) -> None:
        """From what was read last on: `news` has what comes."""
        where = f"--after-cursor={self._cursor}" if self._cursor else f"--since=@{self._began:.3f}"
        try:
            self._following = subprocess.Popen(
                [*self._call, "--follow", "--lines=all", where],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            return
        assert self._following.stdout is not None
        os.set_blocking(self._following.stdout.fileno(), False)

    def news(self) -> list[Record]:
        """What came since the last look; never waits."""
        if self._following is None or self._following.stdout is None:
            return []
        *lines, self._partial = (self._partial + (self._following.stdout.read() or b"")).split(b"\n")
        return self._records(lines)

    def close(self) -> None:
        if self._following is not None:
            self._following.kill()
            self._following.communicate()

    def _records(self, lines: list[bytes]) -> list[Record]:
        entries = [_decode(line) for line in lines if line]
        if entries:
            self._cursor = entries[-1].cursor
        return [record for entry in entries if (record := self._record(entry)).name in self._names]

    def _record(self, entry: _Entry) -> Record:
        """Our own lines begin with who says it; others are raw output, or systemd's about the unit."""
        text = (
            entry.message if isinstance(entry.message, str) else bytes(entry.message or b"").decode("utf-8", "replace")
        )
        level = LEVELS.get(int(entry.priority), "CRITICAL")
        about = entry.about_user_unit or entry.about_system_unit
        name = self._name_of(about or (entry.user_unit if self.unit.is_users else entry.system_unit) or "")
        if about:
            return Record(int(entry.at) / 1e6, level, name, f"systemd: {text}")
        said = re.match(r"([a-z][a-z0-9_-]*): ", text)
        if said and (said[1] == name or said[1] in self._names):
            return Record(int(entry.at) / 1e6, level, said[1], text[said.end() :].replace("\\n", "\n"))
        return Record(int(entry.at) / 1e6, OUTPUT, name, text)

    def _name_of(self, unit: str) -> str:
        found = re.fullmatch(r"specialist@(.+)\.service", unit)
        return found[1] if found else HOUSE


def unit_of(loaded: Loaded, proc: Path = Path("/proc"), system_unit: Path = SYSTEM_UNIT) -> Unit | None:
    """The unit whose journal has what the supervisor says; None where it writes elsewhere."""
    lock = _read(loaded.dirs.state / "supervisor.lock").strip()
    if lock.isdigit() and (proc / lock).is_dir():
        return _unit_of_process(proc / lock)
    if (loaded.dirs.config.parent / "systemd/user" / system_unit.name).exists():
        return Unit(system_unit.name, is_users=True)
    # Somebody without a team of their own looks at the machine's.
    return Unit(system_unit.name, is_users=False) if not lock and system_unit.exists() else None


def _unit_of_process(process: Path) -> Unit | None:
    try:
        environ = dict(one.partition(b"=")[::2] for one in (process / "environ").read_bytes().split(b"\0"))
        stderr = os.readlink(process / "fd/2")
    except OSError:
        return None
    # $JOURNAL_STREAM is inherited by everything a unit starts: only who still has that very socket writes there.
    if stderr != f"socket:[{environ.get(b'JOURNAL_STREAM', b'').decode().partition(':')[2]}]":
        return None
    groups = re.findall(r"^(?:0:|\d+:name=systemd):(.*)$", _read(process / "cgroup"), re.MULTILINE)
    parts = [part for path in groups[:1] for part in path.split("/") if part.endswith(".service")]
    if not parts:
        return None
    return Unit(parts[-1], is_users=any(part.startswith("user@") for part in parts))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
