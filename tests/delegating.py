"""A team whose restarter is systemd: real units under a real user manager, and the supervisor that observes them.

The unit files are those that `chorus service install --restarter systemd` writes; the watchdog is made quicker.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from ports import GATEWAY_OFFSET, free_port_base
from team import ROOT, Team, command, wait_until
from user_manager import UserManager

from supervisor import units
from supervisor.config import load
from supervisor.roster import children

QUICK = "[Service]\nWatchdogSec=1\nTimeoutAbortSec=1\nRestartSec=0\n"
PING = b'{"type": "ping", "close": true}\n'


class Delegated(Team):
    """A team of systemd's. Its commands are ours; `manager` is systemd."""

    def __init__(self, manager: UserManager, env: dict[str, str], port_base: int) -> None:
        super().__init__(manager.home, env, port_base)
        self.manager = manager

    def up(self) -> None:
        """Starts the supervisor's unit, and with it everybody."""
        self.manager.systemctl("start", units.SERVICE)
        self.until_ready()

    def until_ready(self, within: float = 60.0) -> None:
        self.until(lambda seen: all(one["state"] == "ready" for one in seen), within)

    def until(self, holds: Any, within: float = 60.0) -> list[dict[str, Any]]:
        """The specialists of the status, as soon as something holds of them."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            status = self.run("status", "--json")
            if status.returncode != 0:  # the supervisor is not there: what it wrote last does not count
                return False
            found[:] = json.loads(status.stdout)["specialists"]
            return bool(holds(found))

        wait_until(look, within, "it did not come to that")
        return found

    def until_one(self, name: str, holds: Any, within: float = 60.0) -> dict[str, Any]:
        def of_it(seen: list[dict[str, Any]]) -> bool:
            return any(one["name"] == name and holds(one) for one in seen)

        return next(one for one in self.until(of_it, within) if one["name"] == name)

    def pids_of(self, name: str) -> set[int]:
        """All processes of a specialist's unit."""
        return self.manager.pids(f"specialist@{name}.service")

    @property
    def supervisor(self) -> int:
        return self.manager.main_pid(units.SERVICE)


@contextmanager
def delegated(
    tmp_path: Path, roster: list[str], drop_in: str = QUICK, config: str = "", *, gateway: bool = False
) -> Iterator[Delegated]:
    """A team whose units are installed; nothing is started. All of it is gone in the end."""
    manager = UserManager.start(tmp_path / "home")
    try:
        configuration = manager.home / ".config/chorus/config.toml"
        configuration.parent.mkdir()
        configuration.write_text(config)
        base = free_port_base(roster)
        environ = {
            "PYTHONPATH": str(ROOT),
            "CHORUS_PORT_BASE": str(base),
            "CHORUS_ROSTER": ",".join(roster),
            "CHORUS_BACKEND": "builtin",
            "CHORUS_GATEWAY": str(gateway).lower(),
            "CHORUS_GATEWAY_PORT": str(base + GATEWAY_OFFSET),
        }
        loaded = load({}, None, environ | {"HOME": str(manager.home)})
        wanted = units.Team(
            scope=units.Scope.USER,
            restarter="systemd",
            program=command(),
            environ=environ,
            children=children(loaded),
            addresses=["127.0.0.1", "::1"],
            remote=False,
        )
        for name, text in units.unit_files(wanted).items():
            (manager.units / name).write_text(text)
        for unit in ("specialist@.service", "chorus-gateway.service"):
            folder = manager.units / f"{unit}.d"
            folder.mkdir()
            (folder / "test.conf").write_text(drop_in)
        manager.systemctl("daemon-reload")
        yield Delegated(manager, manager.env | environ | {"CHORUS_RESTARTER": "systemd"}, base)
    finally:
        manager.stop()


class Client:
    """Asks one specialist again and again, each time on a new connection, in a thread of its own."""

    def __init__(self, port: int) -> None:
        self.answered = 0
        self.refused: list[OSError] = []
        self.slowest = 0.0
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._stop.wait(0.002):
            began = time.monotonic()
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=10) as client:
                    client.sendall(PING)
                    if client.makefile("rb").readline():
                        self.answered += 1
                        self.slowest = max(self.slowest, time.monotonic() - began)
            except ConnectionResetError:
                pass  # it was being asked when it was killed
            except OSError as error:
                self.refused.append(error)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def is_refused(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return False
    except ConnectionRefusedError:
        return True
