"""Installing the team as a service and taking it away again: why it cannot be done, and each step of doing it, said."""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from daemon import listen
from supervisor import roster
from supervisor.cli.exits import Exit, Failure
from supervisor.cli.installation import Installation, is_ours, text_of
from supervisor.cli.systemd import lingers
from supervisor.cli.up import end_leftovers, lock_is_held
from supervisor.units import ACCOUNT, SERVICE, TARGET, Scope

SETTLED_WITHIN = 60.0  # seconds that an install waits for everybody to answer; the service is up before
LOOK_EVERY = 0.05
POLKIT_SERVICE = Path("/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service")
OUT_OF_SIGHT = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - ProtectHome=, PrivateTmp=


def refuse(what: Installation) -> None:
    """Raises Failure where an install must not be tried."""
    _need_root(what, f"install --system --restarter {what.restarter}")
    if reason := what.systemd.why_not():
        raise Failure(reason, Exit.FAILED, remedy="chorus up, which needs no systemd")
    if what.scope is Scope.SYSTEM and what.restarter == "systemd" and not POLKIT_SERVICE.exists():
        sentence = "without polkit the account could not have systemd start and stop specialists"
        raise Failure(sentence, Exit.FAILED, remedy="apt install polkitd, or --restarter chorus")
    if hidden := _out_of_sight(what):
        remedy = "install chorus where everybody may read it, such as /opt/chorus (python3 -m venv /opt/chorus)"
        raise Failure(f"{hidden} cannot be seen by a system's unit", Exit.FAILED, remedy=remedy)
    for path in what.files():
        if path.exists() and not is_ours(path):
            raise Failure(f"{path} was not written by this command", Exit.FAILED, remedy=f"rm {path}, or keep it")
    if what.systemd.state(SERVICE).get("ActiveState") in ("active", "activating", "reloading"):
        if (other := what.installed_restarter()) != what.restarter:
            again = f"chorus service uninstall --{what.scope.value}, then install it again"
            raise Failure(f"the team runs with the restarter {other}", Exit.FAILED, remedy=again)
        return  # the ports are its own
    if what.scope is Scope.USER and lock_is_held(what.loaded):
        raise Failure("this team runs already, and not as a service", Exit.FAILED, remedy="chorus down")
    _need_ports(what)


def install(what: Installation) -> Iterator[str]:
    """Carries out the plan, and says so line by line. Raises Failure."""
    plan = what.plan()
    changed = [path for path, text in plan.files.items() if text_of(path) != text]
    was_active = what.systemd.state(SERVICE).get("ActiveState") == "active"
    for path in plan.stale:
        yield from _run(what, what.systemd.words("stop", path.name))
        path.unlink()
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(plan.files[path])
        yield f"wrote {path}"
    for words in plan.commands:
        yield from _run(what, words)
    yield from _afterwards(what, changed_while_active=bool(changed) and was_active)


def uninstall(what: Installation) -> Iterator[str]:
    """Stops and removes what was installed, and says so line by line. Raises Failure."""
    _need_root(what, "uninstall --system")
    found = what.installed()
    if not found:
        yield "no units of chorus are installed"
        return
    for words in what.removal(found):
        yield from _run(what, words)
    if what.scope is Scope.USER and (left := end_leftovers(what.loaded)):
        yield f"ended {left} processes that a supervisor had left"
    what.systemd.forget([path.name for path in found if path.name in (SERVICE, TARGET)])
    dirs = what.loaded.dirs
    yield f"the units are removed; what the team has written stays in {dirs.data} and {dirs.state}"
    if what.scope is Scope.SYSTEM:
        yield f"  the account stays, since those files are its own: userdel {ACCOUNT}"


def _out_of_sight(what: Installation) -> str | None:
    """What of this installation a system's unit could not see, so that it would never start; None where all is well."""
    if what.scope is Scope.SYSTEM:
        for path in (sys.executable, os.path.realpath(sys.executable), os.path.realpath(__file__)):
            if path.startswith(tuple(f"{folder}/" for folder in OUT_OF_SIGHT)):
                return path
    return None


def _need_root(what: Installation, words: str) -> None:
    if what.scope is Scope.SYSTEM and os.getuid() != 0:
        again = f"sudo {shlex.quote(sys.executable)} -P -m supervisor.cli service {words}"
        raise Failure("the system's units can be changed by root only", Exit.FAILED, remedy=again)


def _need_ports(what: Installation) -> None:
    from supervisor.fleet import pidfiles, systemctl
    from supervisor.fleet.owner import describe

    for one in roster.children(what.loaded):
        try:
            for listener in listen.bind(one.places):
                listener.close()
        except OSError:
            if pidfiles.read(what.loaded.dirs.state / pidfiles.FORK_SERVER):
                return  # what a supervisor of this very team has left, which the next one takes over
            if what.systemd.state(systemctl.socket(one.name)).get("ActiveState") == "active":
                continue
            fact, remedy = describe(one.port, one.setting_of(one.port))
            raise Failure(f"{one.name} could not listen: {fact}", Exit.FAILED, remedy=remedy) from None


def _run(what: Installation, words: list[str]) -> Iterator[str]:
    yield f"ran {shlex.join(words)}"
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise Failure(f"{words[0]} failed: {reason}", Exit.FAILED, remedy=f"{what.systemd.journal(SERVICE)} -n 30")


def _afterwards(what: Installation, *, changed_while_active: bool) -> Iterator[str]:
    flags = "".join(f"{flag} " for flag in what.systemd.flags)
    yield f"the team runs as {SERVICE}: {_settled(what)}"
    if changed_while_active:
        yield f"  the units have changed: systemctl {flags}restart {SERVICE} applies that, and stops the team first"
    yield f"  look: chorus status; chorus logs -f; systemctl {flags}status {SERVICE}"
    yield f"  undo: chorus service uninstall --{what.scope.value}"
    if what.scope is Scope.SYSTEM:
        yield f"  who may use it: members of the group {ACCOUNT} (usermod --append --groups {ACCOUNT} NAME)"
    elif not lingers(user := pwd.getpwuid(os.getuid()).pw_name):
        yield f"  it ends when {user} logs out of the last session, and starts at a login: loginctl enable-linger keeps it"


def _settled(what: Installation) -> str:
    """How the team is as soon as nobody is still starting, or everybody had the time for it."""
    deadline = time.monotonic() + SETTLED_WITHIN
    while True:
        state = what.systemd.state(SERVICE)
        said = state.get("StatusText") or state.get("ActiveState", "")
        if "starting" not in said or time.monotonic() > deadline:
            return said
        time.sleep(LOOK_EVERY)
