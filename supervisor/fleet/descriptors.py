"""How many files, sockets and pidfds a process of ours may open at a time. Most systems begin with 1024."""

from __future__ import annotations

import resource

OURS = 65_536  # room for limits.connections in every specialist, and for three of each specialist in the supervisor
PROGRAMS = 1024  # of others: with more, those break that use select(2); they may raise it themselves


def make_room() -> None:
    """Raises this process's soft limit, and that of what it forks, as far as may be."""
    _set(OURS)


def as_usual() -> None:
    """Sets the soft limit that a program expects."""
    _set(PROGRAMS)


def _set(wanted: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
