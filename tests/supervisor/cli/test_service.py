"""`chorus service` and the units it writes, under a real user manager of systemd."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import psutil
import pytest
from ports import free_port_base
from team import command, wait_until
from user_manager import UserManager

ROSTER = ["apollo", "athena"]
WITHIN = 60.0
UNIT = "chorus.service"


# Stops a process as a debugger does (PTRACE_ATTACH): it hears no signal any more, until SIGKILL ends it.
HOLD = """
import ctypes, os, sys
pid = int(sys.argv[1])
assert ctypes.CDLL(None).ptrace(16, pid, None, None) == 0
os.waitpid(pid, 0)
print("held", flush=True)
os.waitpid(pid, 0)
"""


class Service:
    """A team of two and the manager whose service it is to be."""

    def __init__(self, manager: UserManager) -> None:
        self.manager = manager
        self.base = free_port_base(ROSTER)
        self.env = {"CHORUS_PORT_BASE": str(self.base), "CHORUS_ROSTER": ",".join(ROSTER), "CHORUS_BACKEND": "builtin"}
        self.env["CHORUS_GATEWAY"] = "false"

    def run(self, *args: str, code: int = 0) -> str:
        """`chorus ARGS`, which ends with this code; returns everything it printed."""
        done = self.manager.run(*command(*args), env=self.env)
        assert done.returncode == code, f"chorus {' '.join(args)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def install(self, *flags: str, drop_in: str = "") -> None:
        """Installs and starts it; `drop_in` are lines of its [Service] section, as `systemctl edit` would write them."""
        folder = self.manager.units / f"{UNIT}.d"
        folder.mkdir()
        (folder / "test.conf").write_text(f"[Service]\nRestartSec=100ms\n{drop_in}\n")
        self.run("service", "install", "--user", *flags)

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.manager.run(*command("status", "--json"), env=self.env).stdout)
        return told

    def pids(self) -> dict[str, int]:
        """Of the specialists, as the supervisor says or the last one wrote."""
        return {one["name"]: one["pid"] for one in self.status()["specialists"]}

    def supervisor(self) -> int:
        return self.manager.main_pid(UNIT)

    def wait_replaced(self, old: int) -> None:
        """Waits until another supervisor than that one answers, and everybody is up."""

        def is_replaced() -> bool:
            new = self.supervisor()
            if new in (0, old):
                return False
            status = self.status()
            ready = all(one["state"] == "ready" for one in status["specialists"])
            return ready and status["supervisor"]["pid"] == new and status["supervisor"]["state"] == "running"

        wait_until(is_replaced, WITHIN, "no other supervisor took over")


@pytest.fixture
def service(user_manager: UserManager) -> Service:
    return Service(user_manager)


# -- death ------------------------------------------------------------------------------------------------------------------


def test_a_killed_supervisor_is_started_again_and_finds_the_same_processes(service: Service) -> None:
    service.install()
    supervisor, pids = service.supervisor(), service.pids()
    os.kill(supervisor, signal.SIGKILL)
    service.wait_replaced(supervisor)
    assert service.pids() == pids


def test_a_team_that_is_killed_to_the_last_process_comes_back(service: Service) -> None:
    service.install()
    supervisor, pids = service.supervisor(), service.pids()
    for pid in sorted(service.manager.pids(UNIT)):
        os.kill(pid, signal.SIGKILL)
    service.wait_replaced(supervisor)
    assert not set(service.pids().values()) & set(pids.values())


def test_a_stopped_supervisor_is_replaced_by_the_watchdog_and_nobody_else_is(service: Service) -> None:
    service.install(drop_in="WatchdogSec=2\nTimeoutAbortSec=1")
    supervisor, pids = service.supervisor(), service.pids()
    os.kill(supervisor, signal.SIGSTOP)
    service.wait_replaced(supervisor)
    assert service.pids() == pids
    mine = service.manager.pids(UNIT)
    assert len(mine) in (4, 5), f"a supervisor, a fork server, two specialists and perhaps a spare, not {mine}"


def test_a_control_socket_that_was_removed_is_there_again(service: Service) -> None:
    service.install()
    supervisor, pids = service.supervisor(), service.pids()
    [path] = (service.manager.runtime / "chorus").glob("*.sock")
    path.unlink()
    wait_until(path.exists, WITHIN, "the control socket was not made anew")
    assert service.pids() == pids
    assert service.supervisor() == supervisor


# -- orders -----------------------------------------------------------------------------------------------------------------


def test_a_stop_leaves_no_process(service: Service) -> None:
    service.install()
    service.manager.systemctl("stop", UNIT)
    assert not service.manager.pids(UNIT)
    assert service.manager.show(UNIT, "Result", "ActiveState") == {"Result": "success", "ActiveState": "inactive"}


def test_a_stop_leaves_no_process_of_a_supervisor_that_does_not_hear(service: Service) -> None:
    service.install(drop_in="TimeoutStopSec=1")
    os.kill(service.supervisor(), signal.SIGSTOP)
    service.manager.run("systemctl", "--user", "stop", UNIT)
    assert not service.manager.pids(UNIT)


def test_a_stop_leaves_no_process_of_a_supervisor_that_had_to_be_killed(service: Service) -> None:
    service.install(drop_in="TimeoutStopSec=2")
    call = [sys.executable, "-c", HOLD, str(service.supervisor())]
    with subprocess.Popen(call, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        service.manager.run("systemctl", "--user", "stop", UNIT)
    assert service.manager.show(UNIT, "Result")["Result"] == "timeout"
    assert not service.manager.pids(UNIT)


def test_a_stop_after_a_crash_leaves_no_process(service: Service) -> None:
    service.install(drop_in="RestartSec=0")
    supervisor = service.supervisor()
    os.kill(supervisor, signal.SIGKILL)
    service.wait_replaced(supervisor)
    service.manager.systemctl("stop", UNIT)
    assert not service.manager.pids(UNIT)


def test_a_wrong_configuration_is_not_tried_again(service: Service) -> None:
    service.install()
    folder = service.manager.home / ".config/chorus"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("rooster = []\n")
    os.kill(service.supervisor(), signal.SIGKILL)
    wait_until(
        lambda: service.manager.show(UNIT, "ActiveState")["ActiveState"] == "failed", WITHIN, "it has not failed"
    )
    assert service.manager.show(UNIT, "ExecMainStatus", "NRestarts") == {"ExecMainStatus": "2", "NRestarts": "1"}
    assert len(service.manager.pids(UNIT)) >= 3, "the fork server and the specialists go on"
    service.run("down")
    assert not service.manager.pids(UNIT)


def test_the_team_says_how_it_is_to_whoever_asks_systemd(service: Service) -> None:
    service.install()
    wait_until(
        lambda: service.manager.show(UNIT, "StatusText")["StatusText"] == "running: 2 ready", WITHIN, "no such status"
    )
    service.run("stop", "athena")
    assert service.manager.show(UNIT, "StatusText")["StatusText"] == "running: 1 ready, 1 stopped"


def test_a_reload_takes_a_changed_configuration_and_keeps_whom_it_does_not_concern(service: Service) -> None:
    service.install()
    pids = service.pids()
    folder = service.manager.home / ".config/chorus"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('[specialists.athena]\npersona = "You are brief."\n')
    service.manager.systemctl("reload", UNIT)
    wait_until(lambda: service.pids()["athena"] not in (None, pids["athena"]), WITHIN, "athena was not restarted")
    assert service.pids()["apollo"] == pids["apollo"]
    assert service.manager.is_active(UNIT)
    service.run("reload")  # in the same way when nobody asked systemd
    assert service.manager.is_active(UNIT)


# -- installing ---------------------------------------------------------------------------------------------------------------


def test_an_install_waits_until_everybody_listens(service: Service) -> None:
    service.install()
    for port in (service.base + 5, service.base + 12):
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=1).close()


def test_installing_again_changes_nothing(service: Service) -> None:
    service.install()
    before, file = service.supervisor(), service.manager.units / UNIT
    changed_at = file.stat().st_mtime_ns
    assert "wrote" not in service.run("service", "install", "--user")
    assert (service.supervisor(), file.stat().st_mtime_ns) == (before, changed_at)


def test_an_uninstall_takes_away_what_was_installed_and_nothing_else(service: Service) -> None:
    theirs = service.manager.units / "theirs.service"
    theirs.write_text("[Service]\nExecStart=/bin/sleep 60\n")
    service.install()
    pids = service.manager.pids(UNIT)
    said = service.run("service", "uninstall", "--user")
    assert {path.name for path in service.manager.units.glob("**/*") if path.is_file()} == {theirs.name, "test.conf"}
    assert not [pid for pid in pids if _lives(pid)]
    assert (service.manager.home / ".local/state/chorus/registry.json").exists()
    assert str(service.manager.home / ".local/state/chorus") in said
    assert "no units" in service.run("service", "uninstall", "--user")


def test_a_dry_run_shows_files_and_commands_and_does_nothing(service: Service) -> None:
    said = service.run("service", "install", "--user", "--dry-run", "--restarter", "systemd")
    assert f"# {service.manager.units / UNIT}\n" in said
    assert f"ListenStream=127.0.0.1:{service.base + 12}\n" in said
    assert "$ systemctl --user daemon-reload\n" in said
    assert not list(service.manager.units.iterdir())


def test_a_path_is_written_as_it_is_from_everywhere(service: Service) -> None:
    (service.manager.home / "mine.toml").write_text('[backend]\nkind = "ollama"\nurl = "http://192.0.2.1:11434"\n')
    del service.env["CHORUS_BACKEND"]
    for how in ({"CHORUS_CONFIG": "mine.toml"}, {}):
        service.env |= how
        flags = [] if how else ["--config", "mine.toml"]
        said = service.run(*flags, "service", "install", "--user", "--dry-run")
        assert str(service.manager.home / "mine.toml") in said
        service.env.pop("CHORUS_CONFIG", None)


def test_a_model_server_on_another_machine_is_let_through_by_the_systems_unit(service: Service) -> None:
    assert "IPAddressDeny=any" in service.run("service", "install", "--system", "--dry-run")
    service.env |= {"CHORUS_BACKEND": "ollama", "CHORUS_BACKEND_URL": "http://192.0.2.1:11434"}
    assert "IPAddressDeny" not in service.run("service", "install", "--system", "--dry-run")


def test_show_tells_the_state_and_whether_the_units_are_as_they_would_be_written(service: Service) -> None:
    assert "not installed" in service.run("service", "show", "--user", code=3)
    service.install()
    [unit] = json.loads(service.run("service", "show", "--user", "--json"))["units"]
    assert (unit["pid"], unit["file"]) == (service.supervisor(), "as it would be written now")
    service.env["CHORUS_MODEL"] = "another"
    assert "not as it would be written now" in service.run("service", "show", "--user")


@pytest.mark.parametrize("restarter", ["chorus", "systemd"])
def test_an_install_beside_a_team_that_is_no_service_is_refused(service: Service, restarter: str) -> None:
    service.run("up")
    said = service.run("service", "install", "--user", "--restarter", restarter, code=1)
    assert "runs already" in said
    assert "chorus down" in said
    assert not list(service.manager.units.iterdir())
    service.run("down")


def test_an_install_where_somebody_holds_a_port_names_who(service: Service) -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", service.base + 12))
        holder.listen()
        assert f"pid {os.getpid()}" in service.run("service", "install", "--user", code=1)


def test_a_unit_that_somebody_else_wrote_is_kept(service: Service) -> None:
    (service.manager.units / UNIT).write_text("[Service]\nExecStart=/bin/true\n")
    assert "was not written by this command" in service.run("service", "install", "--user", code=1)
    assert "no units" in service.run("service", "uninstall", "--user")
    assert (service.manager.units / UNIT).exists()


# -- systemd as the restarter -----------------------------------------------------------------------------------------------


def test_with_systemd_as_the_restarter_a_killed_specialist_is_systemds_to_replace(service: Service) -> None:
    service.install("--restarter", "systemd")
    pid = service.manager.main_pid("specialist@apollo.service")
    assert service.pids()["apollo"] == pid
    os.kill(pid, signal.SIGKILL)
    with socket.create_connection(("localhost", service.base + 12), timeout=WITHIN) as client:  # nobody is refused
        client.sendall(b'{"type":"ping","close":true}\n')
        assert json.loads(client.makefile().readline())["pid"] != pid
    assert "listening on port" in service.run("logs", "apollo")
    service.run("down")
    wait_until(lambda: not service.manager.pids("specialist@apollo.service"), WITHIN, "apollo was left")
    assert not service.manager.is_active("specialist@apollo.socket")
    service.run("service", "uninstall", "--user")
    assert [path.name for path in service.manager.units.rglob("*") if not path.is_dir()] == ["test.conf"]


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
