"""Why no process could be started, and what to do about it: two sentences for people. None of it is the specialist's fault."""

from __future__ import annotations

import errno
import os

from protocol.settings import ChildConfig
from supervisor.errors import CannotStart
from supervisor.fleet.owner import describe

# What fork(2) and socket(2) say when the machine has no room: it passes by itself, or somebody makes room.
NO_ROOM = {
    errno.EAGAIN: (
        "no new process can be started: as many run as may (fork: EAGAIN)",
        "end other processes, or raise the limit: ulimit -u, TasksMax= under systemd, pids.max of a container",
    ),
    errno.ENOMEM: (
        "no new process can be started: memory is used up (fork: ENOMEM)",
        "free memory, or raise the limit: MemoryMax= under systemd, memory.max of a container",
    ),
    errno.EMFILE: (
        "no new process can be started: the fork server may open no more descriptors",
        "raise the limit: ulimit -n, LimitNOFILE= under systemd; then chorus down and chorus up",
    ),
    errno.ENFILE: (
        "no new process can be started: the machine has no more descriptors",
        "raise it: sysctl fs.file-max",
    ),
}


UNKEPT = "the specialists go on without a fork server, and whoever ends is not started again until there is one"


def without_fork_server(number: int | None) -> tuple[str, str]:
    """The fact and the remedy while there is no fork server. `number` is the errno by which the next one failed, if it did."""
    if number is None:
        return f"{UNKEPT}; a new one is being started", "chorus logs supervisor forkserver, if this stays"
    fact, remedy = NO_ROOM.get(number, (f"it cannot be started: {os.strerror(number)}", "chorus logs supervisor"))
    return f"{UNKEPT}: {fact}; it is tried again", remedy


def told(error: CannotStart, config: ChildConfig) -> tuple[str, str]:
    """The fact and the remedy. Slow where the port is taken: a walk over /proc."""
    port = error.port or config.port
    setting = config.setting_of(port)
    if error.number == errno.EADDRINUSE:
        return describe(port, setting)
    if error.number in NO_ROOM:
        return NO_ROOM[error.number]
    if error.number == errno.EACCES:
        return f"port {port} may not be bound by this user", f"set {setting} above 1023"
    return f"port {port} cannot be bound: {error}", "see chorus doctor"
