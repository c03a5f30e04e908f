"""The machine's team: how closed its units are, and that everything works inside, under a real system manager."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ports import free_port_base
from system_manager import SystemManager
from team import ROOT, wait_until

from supervisor.fleet.calls import SPARE

UNITS = ("chorus.service", "specialist@.service")
ROSTER = ["apollo", "athena"]
WITHIN = 60.0


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_closed_to_a_score_of_one_and_a_half(name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (apt install systemd)")
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", ROOT / "systemd" / name],
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout[-300:] + said.stderr


def test_a_specialist_is_closed_as_the_supervisor_is() -> None:
    def closed(name: str) -> str:
        text = (ROOT / "systemd" / name).read_text()
        return text[text.index("NoNewPrivileges=") : text.index("[Install]")]

    assert closed(UNITS[0]) == closed(UNITS[1])


class Machine:
    """A machine on which chorus is installed for everybody, with a member of its group and a stranger."""

    def __init__(self, manager: SystemManager) -> None:
        self.manager = manager
        base = free_port_base(ROSTER)
        self.env = {"CHORUS_PORT_BASE": str(base), "CHORUS_ROSTER": ",".join(ROSTER), "CHORUS_BACKEND": "builtin"}
        self.env["CHORUS_GATEWAY"] = "false"

    def chorus(self, *args: str, user: str = "root", code: int = 0) -> str:
        """`chorus ARGS` as somebody; returns everything it printed."""
        call = ["/opt/chorus/bin/python", "-P", "-m", "supervisor.cli", *args]
        if user != "root":
            call = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *call]
        done = self.manager.run(*call, env=self.env | {"HOME": f"/home/{user}"})
        assert done.returncode == code, (
            f"{user}: chorus {' '.join(args)}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout + done.stderr

    def join(self, *users: str) -> None:
        """Adds users of the machine; the first is a member of the group."""
        for user in users:
            assert self.manager.run("useradd", "--create-home", "--user-group", user).returncode == 0
        assert self.manager.run("usermod", "--append", "--groups", "chorus", users[0]).returncode == 0

    def team(self, unit: str) -> set[int]:
        """The processes of a unit, without the one that is forked ahead: there may be none at this moment."""
        pids = self.manager.pids(unit)
        return {pid for pid in pids if SPARE not in self.manager.run("cat", f"/proc/{pid}/cmdline").stdout}

    def fact(self, pid: int, name: str) -> str:
        """A line of a process's status."""
        found = re.search(rf"^{name}:\s+(\S+)", self.manager.run("cat", f"/proc/{pid}/status").stdout, re.MULTILINE)
        assert found
        return found[1]

    def kill(self, *pids: int) -> None:
        assert self.manager.run("kill", "-KILL", *map(str, pids)).returncode == 0


def test_the_machines_team_works_in_its_sandbox_for_the_members_of_its_group(system_manager: SystemManager) -> None:
    machine = Machine(system_manager)
    machine.chorus("service", "install", "--system")
    machine.join("alice", "bob")
    unit = "chorus.service"
    supervisor, pids = system_manager.main_pid(unit), machine.team(unit)
    assert len(pids) == 4
    assert {machine.fact(pid, "Uid") for pid in pids} == {system_manager.run("id", "-u", "chorus").stdout.strip()}
    assert (machine.fact(supervisor, "CapBnd"), machine.fact(supervisor, "Seccomp")) == ("0" * 16, "2")

    # Members control it at once, and are known to the specialists after a reload; strangers do not even find it.
    assert "apollo  ready" in machine.chorus("status", user="alice")
    assert "may not talk to this team" in machine.chorus("ask", "apollo", "hello there", user="alice", code=2)
    system_manager.systemctl("reload", unit)
    assert "hello there" in machine.chorus("ask", "apollo", "hello there", user="alice")
    assert "listening on port" in machine.chorus("logs", "apollo", user="alice")
    assert "members of its group" in machine.chorus("status", user="bob", code=3)
    assert "may not talk to this team" in machine.chorus("ask", "apollo", "hello there", user="bob", code=2)

    # Deaths: the supervisor's, then the fork server's, whose sockets are taken out of the specialists (pidfd_getfd).
    pids = machine.team(unit)
    machine.kill(supervisor)
    wait_until(lambda: system_manager.main_pid(unit) not in (0, supervisor), WITHIN, "no successor")
    wait_until(lambda: system_manager.is_active(unit), WITHIN, "the successor is not ready")
    assert pids - {supervisor} < system_manager.pids(unit)
    [server] = [pid for pid in pids if "fork server" in system_manager.run("cat", f"/proc/{pid}/cmdline").stdout]
    machine.kill(server)
    wait_until(lambda: len(machine.team(unit) - {server}) == len(pids), WITHIN, "no other fork server")
    assert pids - {supervisor, server} < system_manager.pids(unit)

    machine.chorus("down", user="alice")
    wait_until(lambda: not system_manager.pids(unit), WITHIN, "a process was left")
    assert not system_manager.is_active(unit)
    system_manager.systemctl("start", unit)
    assert "as it would be written now" in machine.chorus("service", "show", "--system")
    machine.chorus("service", "uninstall", "--system")
    wait_until(lambda: not system_manager.pids(unit), WITHIN, "a process was left")
    assert system_manager.run("test", "-e", "/etc/systemd/system/chorus.service").returncode
    assert not system_manager.run("test", "-e", "/var/lib/chorus/registry.json").returncode


def test_the_machines_team_can_be_systemds_to_restart(system_manager: SystemManager) -> None:
    machine = Machine(system_manager)
    if not all(Path(needed).exists() for needed in ("/usr/bin/dbus-daemon", "/usr/lib/polkit-1/polkitd")):
        assert "apt install polkitd" in machine.chorus("service", "install", "--system", "--restarter=systemd", code=1)
        pytest.skip("no polkit that could let the account start and stop units (apt install polkitd)")
    system_manager.run("sh", "-c", "cp /lib/systemd/system/dbus.* /lib/systemd/system/polkit.service /run/units")
    system_manager.systemctl("daemon-reload")
    system_manager.systemctl("start", "dbus.socket", "dbus.service", "polkit.service")
    machine.chorus("service", "install", "--system", "--restarter", "systemd")
    wait_until(lambda: "apollo  ready" in machine.chorus("status"), WITHIN, "apollo does not answer")
    pid = system_manager.main_pid("specialist@apollo.service")
    machine.kill(pid)
    wait_until(lambda: system_manager.main_pid("specialist@apollo.service") not in (0, pid), WITHIN, "no successor")
    wait_until(lambda: "KILL" in machine.chorus("status", "--json"), WITHIN, "how it ended is not told")
    # What the account asks of systemd is allowed by our rule for polkit.
    machine.chorus("stop", "apollo")
    assert not system_manager.is_active("specialist@apollo.socket")
    machine.chorus("start", "apollo")
    assert system_manager.main_pid("specialist@apollo.service")
    machine.chorus("service", "uninstall", "--system")
    wait_until(lambda: not system_manager.pids("specialist@apollo.service"), WITHIN, "a process was left")


def test_only_root_changes_the_machines_units(system_manager: SystemManager) -> None:
    machine = Machine(system_manager)
    system_manager.run("useradd", "--create-home", "--user-group", "bob")
    said = machine.chorus("service", "install", "--system", user="bob", code=1)
    assert "sudo /opt/chorus/bin/python -P -m supervisor.cli service install --system" in said
