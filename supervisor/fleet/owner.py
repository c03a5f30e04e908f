"""Who holds a port that we want: named, never killed."""

from __future__ import annotations

import time
from pathlib import Path

from msgspec import Struct


class Owner(Struct, frozen=True):
    """A process; `age` in seconds. `listening` is False when it has the port as the outgoing end of a connection."""

    pid: int | None
    command: str
    age: float | None
    listening: bool


def owner_of(port: int) -> Owner | None:
    """The process that holds a TCP port of this machine, or None when nobody is seen to. Slow: a walk over /proc."""
    import psutil

    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return None
    found = [one for one in connections if one.laddr and one.laddr.port == port]
    # What is left of an ended connection is nobody's, and may stand before the one that has its port now.
    found.sort(key=lambda one: (one.status != psutil.CONN_LISTEN, one.pid is None))
    for one in found:
        listening = one.status == psutil.CONN_LISTEN
        if one.pid is None:
            return Owner(None, "a process of another user, or one that has just ended", None, listening)
        try:
            process = psutil.Process(one.pid)
            command = " ".join(" ".join(process.cmdline()).split())[:80] or process.name()
            return Owner(one.pid, command, time.time() - process.create_time(), listening)
        except psutil.Error:
            continue
    return None


def describe(port: int, setting: str) -> tuple[str, str]:
    """Why a port cannot be had, and what to do: two sentences for people. `setting` is the key that would change it."""
    owner = owner_of(port)
    if owner is None:
        return f"port {port} is in use", f"wait, or set {setting}"
    who = f"pid {owner.pid} ({owner.command})" if owner.pid else owner.command
    age = f", {_age(owner.age)} old" if owner.age is not None else ""
    if not owner.listening:
        reserve = f"sysctl net.ipv4.ip_local_reserved_ports={port}"
        return (
            f"port {port} is the outgoing end of a connection of {who}{age}",
            f"wait for it to end; {reserve} prevents it",
        )
    remedy = f"kill {owner.pid}" if owner.pid else f"stop it (as root: ss -ltnp 'sport = :{port}')"
    if owner.pid and (unit := _unit(owner.pid)):
        remedy = f"systemctl {unit}"  # whoever kills a unit's process may find the next one there
    return f"port {port} is held by {who}{age}", f"{remedy}, or set {setting}"


def _unit(pid: int) -> str | None:
    """What to ask of systemctl where a process is part of a service of systemd's; None where it is not."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    for group in groups:
        path = group.split(":", 2)[-1]
        name = path.rsplit("/", 1)[-1]
        if name == "init.scope":  # systemd itself, which holds the sockets of socket units
            return f"{'--user ' if '/user@' in path else ''}list-sockets tells its unit, to be stopped"
        if name.endswith(".service") and not name.startswith("user@"):
            has_socket = name.startswith(("specialist@", "chorus-gateway."))
            sockets = f"{name.removesuffix('.service')}.socket " if has_socket else ""
            return f"{'--user ' if '/user@' in path else ''}stop {sockets}{name}"
    return None


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
