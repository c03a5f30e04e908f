"""When to try again. Arithmetic: no clock and no chance inside, so `now` and `chance` are arguments.

The first restart comes at once, the next ones after 0.1 s, doubling up to 15 s, each up to a fifth longer or shorter so that
18 specialists do not come back in step. Ten seconds of readiness forgive everything. More than `intensity` restarts within
`period` seconds (Erlang/OTP's two knobs: a burst is tolerated, a rate is not) and the specialist has failed: it is tried
again slowly, and every failure keeps it there until it has been ready for those ten seconds.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from protocol.settings import RestartPolicy

FIRST_DELAY = 0.1
LONGEST_DELAY = 15.0
JITTER = 0.2
FORGIVEN_AFTER = 10.0  # seconds of readiness
RETRY_FAILED_AFTER = 60.0
LONGEST_BLOCKED = (
    1.6  # between tries for what the machine does not give (a port, memory): with the jitter two seconds at most
)


class Record(Struct, frozen=True):
    """What is remembered of the failures: how many in a row, when the latest were, whether we have given up.

    `blocked` is how many tries in a row the machine did not allow since the last failure. They are nobody's crash.
    """

    in_a_row: int = 0
    times: tuple[float, ...] = ()
    gave_up: bool = False
    blocked: int = 0


def forgiven(record: Record, ready_for: float) -> Record:
    """The record after `ready_for` seconds of readiness."""
    return Record() if ready_for >= FORGIVEN_AFTER else record


def failed(record: Record, now: float, intensity: int, period: float) -> Record:
    """The record after one more failure at `now`, in seconds of any steady clock."""
    times = (*(at for at in record.times if now - at < period), now)
    return Record(record.in_a_row + 1, times, record.gave_up or len(times) > intensity)


def blocked(record: Record) -> Record:
    """The record after one more start that the machine did not allow."""
    return replace(record, blocked=record.blocked + 1)


def blocked_delay(record: Record, chance: float) -> float:
    """Seconds until what is blocked is tried again: from the first delay, doubling; whoever had failed is not held to it."""
    return _spread(min(LONGEST_BLOCKED, FIRST_DELAY * 2 ** min(record.blocked - 1, 16)), chance)


def is_kept_down(policy: RestartPolicy, code: int | None) -> bool:
    """Whether one that ended by itself, with an exit code or without one, is left alone until an operator starts it."""
    return policy == "never" or (policy == "on_failure" and code == 0)


def next_delay(record: Record, chance: float) -> float:
    """Seconds until the next try; `chance` is a number from 0 to 1."""
    if record.gave_up:
        return _spread(RETRY_FAILED_AFTER, chance)
    if record.in_a_row <= 1:
        return 0.0
    # The exponent is bounded before the power is taken: a long night must not make it a large number.
    doublings = min(record.in_a_row - 2, 16)
    return _spread(min(LONGEST_DELAY, FIRST_DELAY * 2**doublings), chance)


def _spread(delay: float, chance: float) -> float:
    return delay * (1 - JITTER + 2 * JITTER * chance)
