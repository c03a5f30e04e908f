"""Is a process alive, and how is it? Asked of itself, over a connection that is kept open.

A process that is stopped still accepts connections: the kernel does it for it. Only an answer counts. Any line received
counts as life, and rounds in which our own loop was late do not count at all: a laptop that was asleep must not find a dead
team when it wakes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import anyio
from msgspec import Struct

from protocol.client import Connection, connect
from protocol.errors import PeerError, ProtocolError
from protocol.messages import Health, HealthResponse

logger = logging.getLogger("chorus.supervisor")

START_WITHIN = 20.0  # seconds until a new process must have answered once
RETRY_AFTER = 0.02  # between connections while a predecessor still accepts on the same listener
LEAST_PATIENCE = 0.5  # seconds that every question has, also to one that was silent before
OWN_LATENESS = 1.0  # seconds our own loop may be late before a round is void


class Answering(Struct, frozen=True):
    """It answered; this is what it said."""

    health: HealthResponse


class Silent(Struct, frozen=True):
    """It did not, for this many seconds."""

    seconds: float


Verdict = Answering | Silent


async def watch(
    host: str, port: int, pid: int, period: float, hung_after: float, report: Callable[[Verdict], None]
) -> None:
    """Asks one process for its health until cancelled, and reports every verdict. Silence is reported every period."""
    heard = time.monotonic()
    limit = max(START_WITHIN, hung_after)
    while True:
        asked = time.monotonic()
        allowed = max(LEAST_PATIENCE, limit - (asked - heard))
        with anyio.move_on_after(allowed) as patience:
            try:
                async with connect(host, port) as connection:
                    answer = await _ask(connection)
                    if answer.pid == pid:
                        report(Answering(answer))
                        limit = hung_after
                        patience.deadline = math.inf  # the rounds have limits of their own
                        heard = await _keep_asking(connection, period, hung_after, report)
            except ProtocolError as error:
                if not isinstance(error, PeerError):
                    logger.warning("port %d answered a health check with: %s", port, error.sentence)
        if patience.cancelled_caught and _was_late(asked + allowed):
            heard = time.monotonic()
        silent_for = time.monotonic() - heard
        if silent_for >= limit:
            report(Silent(silent_for))
        await anyio.sleep(RETRY_AFTER)


async def _keep_asking(
    connection: Connection, period: float, hung_after: float, report: Callable[[Verdict], None]
) -> float:
    """Rounds on one connection; returns when it was last heard of, once it is silent for too long or the connection ends."""
    heard = time.monotonic()
    while True:
        # All rounds of the fleet fall on the same moments: waking once for 18 questions costs less than waking 18 times.
        due = (time.monotonic() // period + 1) * period
        await anyio.sleep(due - time.monotonic())
        if _was_late(due):
            heard = time.monotonic()
        asked = time.monotonic()
        allowed = max(LEAST_PATIENCE, hung_after - (asked - heard))
        with anyio.move_on_after(allowed) as patience:
            try:
                report(Answering(await _ask(connection)))
            except PeerError:
                return heard
            heard = time.monotonic()
        if patience.cancelled_caught:
            # Its answer may lie there unread: a timer that is overdue cancels before we come to read.
            return time.monotonic() if _was_late(asked + allowed) else heard


def _was_late(due: float) -> bool:
    """Whether it was us who slept over the end of a wait."""
    return time.monotonic() - due > OWN_LATENESS


async def _ask(connection: Connection) -> HealthResponse:
    answer = await connection.call(Health())
    if not isinstance(answer, HealthResponse):
        raise PeerError("a health check was answered by something else")
    return answer
