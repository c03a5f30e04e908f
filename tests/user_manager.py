"""A real `systemd --user` manager with a real journal, for tests of unit files on any machine where we are root.

Both run in a mount namespace of their own, so that a machine whose first process is no systemd will do, and nothing of them
stays. The manager's control group is named as logind names it: the journal knows a user's units by that.

    def test_a_unit_runs(user_manager: UserManager) -> None:
        user_manager.install("hello.service", "[Service]\nExecStart=/bin/sleep 60\n")
        user_manager.systemctl("start", "hello")
        assert user_manager.pids("hello.service")
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from team import OURS, wait_until

BINARIES = Path("/lib/systemd")
# Of a hybrid machine both hierarchies, of a unified one the only one.
CGROUP_ROOTS = [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup")]
WITHIN = 60.0  # seconds for any one command

# Runs as the namespace's first process and becomes the manager. Audit= with no value: the kernel's auditing stays as it is.
INSIDE = """
set -e
for group in $CGROUPS; do echo $$ > "$group/cgroup.procs"; done
mount --make-rprivate /
mkdir -p /run/systemd /run/log
mount -t tmpfs tmpfs /run/systemd
mount -t tmpfs tmpfs /run/log
mkdir -p /run/systemd/system /run/systemd/journald.conf.d /run/log/journal
printf '[Journal]\\nStorage=volatile\\nRuntimeMaxUse=16M\\nReadKMsg=no\\nAudit=\\nRateLimitIntervalSec=0\\n' \
    > /run/systemd/journald.conf.d/test.conf
unset CGROUPS
/lib/systemd/systemd-journald &
while [ ! -S /run/systemd/journal/stdout ]; do kill -0 $!; sleep 0.01; done
exec /lib/systemd/systemd --user --log-target=journal --log-level=info
"""


class UserManager:
    """One manager. `home` has its units below `.config/systemd/user`; `env` is what its commands run with."""

    scope: ClassVar = ["--user"]  # for systemctl

    def __init__(self, home: Path, env: dict[str, str], cgroups: list[Path], process: subprocess.Popen[bytes]) -> None:
        self.home = home
        self.env = env
        self.runtime = Path(env["XDG_RUNTIME_DIR"])
        self.units = home / ".config/systemd/user"
        self.process = process
        self._cgroups = cgroups

    @classmethod
    def start(cls, home: Path) -> Self:
        """A manager that takes orders. Skips the test, with the reason, where there can be none."""
        if reason := why_not():
            pytest.skip(f"no systemd user manager: {reason}")
        (home / ".config/systemd/user").mkdir(parents=True)
        env = {key: value for key, value in os.environ.items() if not key.startswith((*OURS, "DBUS_"))}
        env |= {"HOME": str(home), "XDG_RUNTIME_DIR": tempfile.mkdtemp(prefix="um-")}  # short: it is for sockets
        cgroups = _make_cgroups(f"chorustest{os.getpid()}{Path(env['XDG_RUNTIME_DIR']).name[3:]}.slice")
        with (home / "manager.out").open("wb") as output:
            process = subprocess.Popen(
                # Told to end when this process does, however that ends.
                ["setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "sh", "-c", INSIDE],
                env=env | {"CGROUPS": " ".join(map(str, cgroups))},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        manager = cls(home, env, cgroups, process)
        wait_until(manager._takes_orders, WITHIN, f"the user manager does not answer, see {home}/manager.out:")
        return manager

    # -- orders ---------------------------------------------------------------------------------------------------------

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, timeout: float = WITHIN
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command where the manager and its journal are seen."""
        return subprocess.run(
            self.command(*command),
            env=self.env | dict(env or {}),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def command(self, *command: str) -> list[str]:
        """The argument list that runs a command there; it wants `env`."""
        return ["nsenter", "--mount", f"--target={self.process.pid}", "--wd=" + str(self.home), *command]

    def systemctl(self, *args: str) -> str:
        """`systemctl ARGS` for this manager; a failure is one of the test."""
        done = self.run("systemctl", *self.scope, *args)
        assert done.returncode == 0, f"systemctl {' '.join(args)}: {done.stderr}{self._why(args[-1])}"
        return done.stdout

    def install(self, name: str, text: str) -> None:
        """Writes a unit file and has the manager read it."""
        (self.units / name).write_text(text)
        self.systemctl("daemon-reload")

    # -- what is known ----------------------------------------------------------------------------------------------------

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit, such as ActiveState, SubState, MainPID, NRestarts, Result, StatusText."""
        lines = self.systemctl("show", unit, *(f"--property={one}" for one in properties)).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def is_active(self, unit: str) -> bool:
        return self.show(unit, "ActiveState")["ActiveState"] == "active"

    def main_pid(self, unit: str) -> int:
        return int(self.show(unit, "MainPID")["MainPID"])

    def pids(self, unit: str) -> set[int]:
        """Every process of the unit's control group, those of its child groups too."""
        group = self.show(unit, "ControlGroup")["ControlGroup"]
        found: set[int] = set()
        for root in CGROUP_ROOTS:
            if group and (root / group.lstrip("/")).is_dir():
                for procs in (root / group.lstrip("/")).rglob("cgroup.procs"):
                    found |= {int(line) for line in procs.read_text().split()}
                break
        return found

    def journal(self, unit: str) -> list[dict[str, Any]]:
        """What the processes of a unit have said, oldest first."""
        done = self.run("journalctl", f"_SYSTEMD_USER_UNIT={unit}", "--output=json", "--quiet")
        return [json.loads(line) for line in done.stdout.splitlines()]

    # -- the end ------------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ends the manager and everything it started."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            pass
        wait_until(lambda: all(remove_group(one.parent) for one in self._cgroups), WITHIN, "processes cannot be killed")
        self.process.wait(5)
        shutil.rmtree(self.env["XDG_RUNTIME_DIR"], ignore_errors=True)

    def _takes_orders(self) -> bool:
        assert self.process.poll() is None, (self.home / "manager.out").read_text()
        told = self.run("systemctl", *self.scope, "is-system-running").stdout.strip()
        return told in ("running", "degraded")

    def _why(self, unit: str) -> str:
        told = self.run("systemctl", *self.scope, "status", "--no-pager", "--full", "--lines=30", unit)
        return f"\n{told.stdout}{told.stderr}"


def why_not() -> str | None:
    """Why no manager can be had here; None where it can."""
    if sys.platform != "linux":
        return "this is not Linux"
    if os.getuid() != 0:
        return "a mount namespace and a control group of its own need root"
    missing = [name for name in ("systemctl", "journalctl", "unshare", "nsenter", "setpriv") if not shutil.which(name)]
    missing += [name for name in ("systemd", "systemd-journald") if not (BINARIES / name).exists()]
    if missing:
        return f"{', '.join(missing)} not installed (apt install systemd)"
    if not Path("/etc/machine-id").exists() or not Path("/etc/machine-id").read_text().strip():
        return "/etc/machine-id is missing or empty (systemd-machine-id-setup)"
    if not any(_can_write(root) for root in CGROUP_ROOTS):
        return "no control group can be made below /sys/fs/cgroup"
    if subprocess.run(["unshare", "--mount", "mount", "--make-rprivate", "/"], capture_output=True).returncode:
        return "mount namespaces are not allowed here"
    return None


@pytest.fixture
def user_manager(tmp_path: Path) -> Iterator[UserManager]:
    """A manager of the test's own, in `tmp_path / "home"`: it takes a tenth of a second."""
    manager = UserManager.start(tmp_path / "home")
    try:
        yield manager
    finally:
        manager.stop()


def _can_write(root: Path) -> bool:
    return (root / "cgroup.procs").exists() and os.access(root / "cgroup.procs", os.W_OK)


def _make_cgroups(name: str) -> list[Path]:
    """The manager's group in each hierarchy that counts."""
    made = []
    for root in CGROUP_ROOTS:
        if _can_write(root):
            group = root / name / f"user@{os.getuid()}.service"
            group.mkdir(parents=True)
            made.append(group)
    return made


def remove_group(group: Path) -> bool:
    """Kills what is in a control group and below, and removes it; True when it is gone."""
    for procs in group.rglob("cgroup.procs"):
        for line in procs.read_text().split():
            try:
                os.kill(int(line), signal.SIGKILL)
            except ProcessLookupError:
                pass
    try:
        for folder in sorted([*group.rglob("*/"), group], key=lambda one: -len(one.parts)):
            if folder.is_dir():
                folder.rmdir()
    except OSError:
        return False
    return True
