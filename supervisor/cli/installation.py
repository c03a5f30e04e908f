"""The team as a service, as it is to be and as it is installed. It only looks: `servicing.py` does."""

from __future__ import annotations

import grp
import os
import pwd
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from daemon import listen
from protocol.settings import Restarter
from supervisor import roster, sense
from supervisor.cli.context import Invocation, arguments
from supervisor.cli.systemd import ServiceManager
from supervisor.config import Loaded, load
from supervisor.units import (
    ACCOUNT,
    POLKIT,
    SERVICE,
    TARGET,
    TEMPLATE,
    Scope,
    Team,
    polkit_rule,
    surroundings,
    unit_files,
)

SIGN = "Written by `chorus service install`"  # in the first line of every file that is ours
SYSTEM_UNITS = Path("/etc/systemd/system")
PATHS = ("CHORUS_CONFIG", "CHORUS_SOCKET")  # variables that may be relative to where one stands
PATTERNS = (SERVICE, TARGET, TEMPLATE, "specialist@*.socket", "chorus-gateway.service", "chorus-gateway.socket")
# What the system's manager tells the unit; the folders are its own.
SYSTEM_FOLDERS = {
    "HOME": "/var/lib/chorus",
    "CONFIGURATION_DIRECTORY": "/etc/chorus",
    "STATE_DIRECTORY": "/var/lib/chorus",
    "LOGS_DIRECTORY": "/var/log/chorus",
    "RUNTIME_DIRECTORY": "/run/chorus",
}


class Plan(Struct, frozen=True):
    """Files to write, files of ours that have no use any more, and then commands, in this order."""

    files: dict[Path, str]
    stale: list[Path]
    commands: list[list[str]]


class Unit(Struct, frozen=True):
    """One unit as it is: `file` says how it compares with what would be written now."""

    name: str
    path: str
    is_installed: bool
    state: str
    pid: int | None
    file: str


class Installation:
    """The service in one scope. `restarter` None: as it is installed, or else chorus."""

    def __init__(self, call: Invocation, scope: Scope, restarter: Restarter | None = None) -> None:
        self.scope = scope
        self.systemd = ServiceManager(scope)
        self._call = call
        said = surroundings(call.environ, scope)
        # A unit starts in another folder than this command.
        self._environ = {key: os.path.abspath(value) if key in PATHS else value for key, value in said.items()}
        seen: Mapping[str, str] = call.environ if scope is Scope.USER else SYSTEM_FOLDERS | self._environ
        self.loaded: Loaded = load(call.flags, call.config_file, seen)
        # A user's own units are beside our configuration, by the same rule (systemd.unit(5)).
        self._folder = self.loaded.dirs.config.parent / "systemd/user" if scope is Scope.USER else SYSTEM_UNITS
        self.restarter: Restarter = restarter or self.installed_restarter()

    # -- as it is to be -------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        files = self.files()
        enabled = [name for name in (SERVICE, TARGET) if self._folder / name in files]
        systemctl = self.systemd.words
        commands = [
            *self._account(),
            systemctl("daemon-reload"),
            systemctl("enable", *enabled),
            systemctl("start", *reversed(enabled)),
        ]
        return Plan(files, [path for path in self.installed() if path not in files], commands)

    def files(self) -> dict[Path, str]:
        """The text of every file, by its path."""
        children = roster.children(self.loaded)
        made_for = Team(
            scope=self.scope,
            restarter=self.restarter,
            # -P: a folder called supervisor or daemon where a unit happens to start is not ours.
            program=[sys.executable, "-P", "-m", "supervisor.cli", *arguments(self._call)],
            environ=self._environ,
            children=children,
            addresses=_addresses_here({host for one in children for host, _ in one.places}),
            remote=not self._is_all_here(),
        )
        files = {self._folder / name: text for name, text in unit_files(made_for).items()}
        if rule := polkit_rule(made_for):
            files[POLKIT] = rule
        return files

    def _is_all_here(self) -> bool:
        """Whether the model server and all clients are on this machine; specialists listen nowhere else."""
        gateway = self.loaded.settings.gateway
        hosts = [urlsplit(self.loaded.url).hostname or "", *([gateway.host] if gateway.enabled else [])]
        return all(map(sense.is_loopback, hosts))

    def _account(self) -> list[list[str]]:
        """The command that makes the account of the system's team, where there is none."""
        if self.scope is Scope.USER or _exists(pwd.getpwnam, ACCOUNT):
            return []
        group = ["--gid", ACCOUNT] if _exists(grp.getgrnam, ACCOUNT) else ["--user-group"]
        home = ["--home-dir", SYSTEM_FOLDERS["HOME"], "--no-create-home"]
        return [["useradd", "--system", *group, *home, "--shell", "/usr/sbin/nologin", ACCOUNT]]

    # -- as it is -------------------------------------------------------------------------------------------------------

    def installed(self) -> list[Path]:
        """The files that an install has written."""
        found = [path for pattern in PATTERNS for path in sorted(self._folder.glob(pattern)) if is_ours(path)]
        return [*found, *([POLKIT] if self.scope is Scope.SYSTEM and is_ours(POLKIT) else [])]

    def installed_restarter(self) -> Restarter:
        return "systemd" if "CHORUS_RESTARTER=systemd" in (text_of(self._folder / SERVICE) or "") else "chorus"

    def removal(self, found: list[Path]) -> list[list[str]]:
        """The commands that take these files away, with what runs by them."""
        systemctl = self.systemd.words
        enabled = [name for name in (SERVICE, TARGET) if self._folder / name in found]
        return [
            *([systemctl("disable", "--now", *enabled)] if enabled else []),
            ["rm", *map(os.fspath, found)],
            systemctl("daemon-reload"),
        ]

    def show(self) -> list[Unit]:
        """Every unit that is installed, or would be."""
        files = self.files()
        paths = [*files, *(path for path in self.installed() if path not in files)]
        reachable = self.systemd.why_not() is None
        return [self._unit(path, files.get(path), reachable) for path in paths if path != POLKIT]

    def _unit(self, path: Path, wanted: str | None, reachable: bool) -> Unit:
        state = self.systemd.state(path.name) if reachable and "@." not in path.name else {}
        pid = int(state.get("MainPID", "0")) or None
        words = [f"{state['ActiveState']} ({state['SubState']})"] if "SubState" in state else ["-"]
        words += [f"pid {pid}"] if pid else []
        words += [text] if (text := state.get("StatusText")) else []
        there = text_of(path)
        if there is None:
            file = "not installed"
        elif not is_ours(path):
            file = "not written by chorus service install"
        elif there == wanted:
            file = "as it would be written now"
        else:
            file = f"not as it would be written now: chorus service install --{self.scope.value}"
        return Unit(path.name, os.fspath(path), there is not None, ", ".join(words), pid, file)


def is_ours(path: Path) -> bool:
    """Whether an install has written it."""
    return SIGN in (text_of(path) or "").partition("\n")[0]


def text_of(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return None


def _addresses_here(hosts: set[str]) -> list[str]:
    """Those of the addresses that this machine has: a socket unit fails with the first that cannot be had."""
    found = []
    for host in sorted(hosts):
        try:
            for listener in listen.bind([(host, 0)]):
                listener.close()
            found.append(host)
        except OSError:
            pass
    return found


def _exists(look_up: Callable[[str], object], name: str) -> bool:
    try:
        look_up(name)
    except KeyError:
        return False
    return True
