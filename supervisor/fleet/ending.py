"""How the end of a process is told."""

from __future__ import annotations

import signal
from pathlib import Path

from protocol.control import LastExit
from protocol.settings import ChildConfig
from supervisor.fleet.calls import CANNOT_EXECUTE, Exited

LAST_WORDS = 512  # bytes of raw output that are looked at


def sentence(exit_: Exited) -> str:
    """How a process ended."""
    if exit_.signal is not None:
        return f"killed by {signal_name(exit_.signal)}"
    if exit_.code is None:
        return "ended, and nobody was there to learn how"
    return f"exited with code {exit_.code}"


def cause(exit_: Exited, running: ChildConfig) -> str:
    """The same, and why where it could not become what it was to be."""
    how = sentence(exit_)
    if exit_.code != CANNOT_EXECUTE or not running.log_dir:
        return how
    try:
        with (Path(running.log_dir) / f"{running.name}.out").open("rb") as raw:
            raw.seek(max(0, raw.seek(0, 2) - LAST_WORDS))
            said = raw.read().decode(errors="replace").split("\n")
    except OSError:
        return how
    return f"{how}: {said[-2]}" if said[1:] and said[-2] else how


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
