"""What can go wrong on the supervisor's side; each says what to do.

SupervisorError
├── AlreadyRunning      another supervisor holds the state folder
├── ForkServerLost      the process that holds the sockets is gone
├── CannotStart         a process could not be started: its port is taken, or the machine has no room
├── NoServiceManager    systemd is to be the restarter, and we are not one of its units
└── SystemdRefused      systemd was asked for something and did not do it
"""

from __future__ import annotations


class SupervisorError(Exception):
    """A failure with a sentence for people."""


class AlreadyRunning(SupervisorError):
    """Another supervisor holds the state folder; `pid` is its process where it is known."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(f"a supervisor is already running{f' (pid {pid})' if pid else ''}")
        self.pid = pid


class ForkServerLost(SupervisorError):
    """The process that holds the sockets is gone."""


class CannotStart(SupervisorError):
    """A process could not be started: its port is taken, or the machine has no room.

    `number` is the errno, `port` the one that it is about, where it is about one.
    """

    def __init__(self, number: int, reason: str, port: int | None = None) -> None:
        super().__init__(reason)
        self.number = number
        self.port = port


class NoServiceManager(SupervisorError):
    """systemd is to be the restarter, and this process is not one of its units."""


class SystemdRefused(SupervisorError):
    """systemd was asked for something and did not do it; says what it said."""
