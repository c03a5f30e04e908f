"""What can go wrong on the supervisor's side; each says what to do.

SupervisorError
├── AlreadyRunning      another supervisor holds the state folder
├── ForkServerLost      the process that holds the sockets is gone
└── CannotBind          a port could not be bound
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


class CannotBind(SupervisorError):
    """A port could not be bound; `number` is the errno."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number
