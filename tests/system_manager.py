"""A real system manager of systemd as the first process of namespaces of its own, for tests that need an account and a sandbox.

It sees this machine's files; what it writes to /etc, /var, /run and /opt is gone with it. Of the machine's own units it knows
none, so that nothing is started but what a test installs.
"""

from __future__ import annotations

import os
import signal
import site
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Self

import pytest
from team import OURS, ROOT, wait_until
from user_manager import CGROUP_ROOTS, WITHIN, UserManager, remove_group, why_not

HIDDEN = ("/root/", "/home/")  # from units that are to see no homes

INSIDE = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
for folder in etc var; do
    mkdir -p /run/over/$folder/new /run/over/$folder/work
    mount -t overlay -o lowerdir=/$folder,upperdir=/run/over/$folder/new,workdir=/run/over/$folder/work overlay /$folder
done
mount -t tmpfs -o mode=755 tmpfs /opt
umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys  # the kernel's settings are not only ours
mkdir -p /run/units /run/log/journal /run/systemd/journal /run/systemd/journald.conf.d /run/lock
for name in sysinit basic network multi-user shutdown sockets timers paths slices; do
    printf '[Unit]\\nDefaultDependencies=no\\n' > /run/units/$name.target
done
printf '[Journal]\\nStorage=volatile\\nRuntimeMaxUse=16M\\nReadKMsg=no\\nAudit=\\n' > /run/systemd/journald.conf.d/test.conf
/lib/systemd/systemd-journald &
while [ ! -S /run/systemd/journal/stdout ]; do kill -0 $!; sleep 0.01; done
exec /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no
"""


class SystemManager(UserManager):
    """One manager. Its pids are those of its own namespace."""

    scope: ClassVar = []

    @classmethod
    def start(cls, home: Path) -> Self:
        """A manager that takes orders. Skips the test, with the reason, where there can be none."""
        if reason := why_not():
            pytest.skip(f"no system manager of systemd: {reason}")
        home.mkdir(parents=True)
        roots = [root for root in CGROUP_ROOTS if (root / "cgroup.controllers").exists()]
        if not roots:
            pytest.skip("no system manager of systemd: there is no unified control group")
        group = roots[0] / f"chorustest{os.getpid()}{home.parent.name}"
        group.mkdir()
        env = {key: value for key, value in os.environ.items() if not key.startswith((*OURS, "DBUS_"))}
        env |= {"HOME": "/root", "container": "test", "SYSTEMD_UNIT_PATH": "/run/units:/etc/systemd/system"}
        namespaces = ["--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--mount-proc", "--kill-child"]
        with (home / "manager.out").open("wb") as output:
            # The control group is entered before there is a namespace of it.
            enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec unshare "$@"', os.fspath(group)]
            outer = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *enter, *namespaces, "sh", "-c", INSIDE],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        manager = cls(home, env | {"XDG_RUNTIME_DIR": os.fspath(home)}, [group], outer)
        manager.units = Path("/etc/systemd/system")
        wait_until(manager._takes_orders, WITHIN, f"the system manager does not answer, see {home}/manager.out:")
        return manager

    def command(self, *command: str) -> list[str]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        target = children[0] if children else str(self.process.pid)
        return ["nsenter", "--mount", "--pid", "--uts", "--ipc", "--cgroup", f"--target={target}", "--wd=/", *command]

    def pids(self, unit: str) -> set[int]:
        group = self.show(unit, "ControlGroup")["ControlGroup"]
        return (
            {int(line) for line in self.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs").stdout.split()}
            if group
            else set()
        )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGKILL)  # its first process ends with it, and all others with that
        self.process.wait(5)
        wait_until(lambda: remove_group(self._cgroups[0]), WITHIN, "processes cannot be killed")

    # -- an installation that a system's unit can see ---------------------------------------------------------------------

    def install_chorus(self) -> None:
        """This very tree in an environment of its own, in /opt/chorus."""
        python = _visible_python()
        script = f"""
            set -e
            {python} -m venv --without-pip /opt/chorus
            mkdir /opt/project /opt/packages
            mount --bind '{ROOT}' /opt/project && mount --bind '{site.getsitepackages()[0]}' /opt/packages
            cd /opt/chorus/lib/python*/site-packages
            printf '%s\\n' /opt/project /opt/packages > chorus.pth
            """
        done = self.run("sh", "-c", script)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def system_manager(tmp_path: Path) -> Iterator[SystemManager]:
    """A system manager of the test's own, with chorus in /opt/chorus."""
    manager = SystemManager.start(tmp_path / "system")
    try:
        manager.install_chorus()
        yield manager
    finally:
        manager.stop()


def _visible_python() -> str:
    """An interpreter as ours that is in nobody's home. Skips the test where there is none."""
    ours = os.path.realpath(sys.executable)
    if not ours.startswith(HIDDEN):
        return ours
    code = "import sys; print(sys.version_info[:2])"
    other = subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    if other != str(sys.version_info[:2]):
        pytest.skip(f"the interpreter is in a home folder ({ours}), and /usr/bin/python3 is not of the same version")
    return "/usr/bin/python3"
