"""How a command ends: the exit codes, and the one exception that carries a failure to the top."""

from __future__ import annotations

from enum import IntEnum

from protocol.errors import (
    Busy,
    CallerError,
    Draining,
    ModelServerError,
    NotFound,
    PeerError,
    ProtocolError,
    Unavailable,
)


class Exit(IntEnum):
    """Stable: scripts rely on them."""

    DONE = 0
    FAILED = 1
    USAGE = 2  # usage or configuration
    NOT_RUNNING = 3
    NO_SUCH_SPECIALIST = 4
    MODEL_SERVER = 5
    PARTIAL = 6
    TIMEOUT = 124
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class Failure(Exception):
    """An expected failure: what happened, what to do, and the exit code. Printed without a traceback.

    `code` is the wire's code, where the failure came over the wire: for `--json`.
    """

    def __init__(self, sentence: str, exit_code: Exit, *, remedy: str | None = None, code: str = "failed") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.exit_code = exit_code
        self.remedy = remedy
        self.code = code


def failure_of(error: ProtocolError) -> Failure:
    """The failure that a protocol error is for somebody at the command line."""
    if isinstance(error, NotFound):
        exit_code = Exit.NO_SUCH_SPECIALIST
    elif isinstance(error, ModelServerError | Busy):
        exit_code = Exit.MODEL_SERVER
    elif isinstance(error, PeerError | Unavailable | Draining):
        exit_code = Exit.NOT_RUNNING
    elif error.code == "deadline":
        exit_code = Exit.TIMEOUT
    elif error.code == "context_overflow":
        exit_code = Exit.MODEL_SERVER
    elif isinstance(error, CallerError):
        exit_code = Exit.USAGE
    else:
        exit_code = Exit.FAILED
    return Failure(error.sentence, exit_code, code=error.code or "not_running")


def not_running(what: str = "the team is not running") -> Failure:
    return Failure(what, Exit.NOT_RUNNING, remedy="chorus up", code="not_running")
