"""How the end of a process is told."""

from __future__ import annotations

import signal

from protocol.control import LastExit
from supervisor.fleet.calls import Exited


def sentence(exit_: Exited) -> str:
    """How a process ended."""
    if exit_.signal is not None:
        return f"killed by {signal_name(exit_.signal)}"
    if exit_.code is None:
        return "ended, and nobody was there to learn how"
    return f"exited with code {exit_.code}"


def last_exit(exit_: Exited, cause: str) -> LastExit:
    """An end as the status shows it."""
    return LastExit(cause, exit_.code, signal_name(exit_.signal), exit_.at)


def signal_name(number: int | None) -> str | None:
    if number is None:
        return None
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
