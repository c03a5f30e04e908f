"""Is a process alive, and how is it? Asked of itself, over a connection that is kept open.

A process that is stopped still accepts connections: the kernel does it for it. Only an answer counts. Any line received
counts as life, and rounds in which our own loop was late do not count at all: a laptop that was asleep must not find a dead
team when it wakes.

Who has closed its listener goes on answering here. So the question comes in by the door, on a new connection, now and then, and
at once when somebody is seen to wait there: that costs four times as much as a round on the connection that is there.
"""

from __future__ import annotations

import logging
import math
import os
import random
import time
from collections.abc import Callable
from functools import partial

import anyio
import anyio.abc
from msgspec import Struct

from protocol.errors import PeerError, ProtocolError
from protocol.messages import HealthResponse
from protocol.settings import ChildConfig, GatewayConfig, Supervision
from supervisor.fleet.asking import Ask, asking
from supervisor.fleet.lifecycle import Event

logger = logging.getLogger("chorus.supervisor")

START_WITHIN = 20.0  # seconds until a new process must have answered once
RETRY_AFTER = 0.02  # between connections while a predecessor still accepts on the same listener
LEAST_PATIENCE = 0.5  # seconds that every question has, also to one that was silent before
ROUNDS = (
    15  # on one connection, or by chance fewer, so that not the whole fleet is asked at the door in the same moment
)
OWN_LATENESS = 1.0  # seconds our own loop may be late before a round is void


class Answering(Struct, frozen=True):
    """It answered; this is what it said."""

    health: HealthResponse


class Silent(Struct, frozen=True):
    """It did not, for this many seconds."""

    seconds: float


Verdict = Answering | Silent


async def watch(
    config: ChildConfig,
    pid: int,
    period: float,
    hung_after: float,
    is_waited_for: Callable[[], bool],
    report: Callable[[Verdict], None],
) -> None:
    """Asks one process for its health until cancelled, and reports every verdict. Silence is reported every period.

    `is_waited_for` says whether somebody stands at its door and has not been let in.
    """
    heard = time.monotonic()
    limit = max(START_WITHIN, hung_after)
    while True:
        asked = time.monotonic()
        allowed = max(LEAST_PATIENCE, limit - (asked - heard))
        with anyio.move_on_after(allowed) as patience:
            try:
                async with asking(config) as ask:
                    answer = await ask()
                    if _is_of(answer.pid, pid):
                        report(Answering(answer))
                        limit = hung_after
                        patience.deadline = math.inf  # the rounds have limits of their own
                        heard = await _keep_asking(ask, config.port, period, hung_after, is_waited_for, report)
                        continue  # by the door: silence counts when the door stays shut as well
            except ProtocolError as error:
                _tell(config.port, error)
        if patience.cancelled_caught and _was_late(asked + allowed):
            heard = time.monotonic()
        silent_for = time.monotonic() - heard
        if silent_for >= limit:
            report(Silent(silent_for))
        await anyio.sleep(RETRY_AFTER)


async def _keep_asking(
    ask: Ask,
    port: int,
    period: float,
    hung_after: float,
    is_waited_for: Callable[[], bool],
    report: Callable[[Verdict], None],
) -> float:
    """Some rounds on one connection; returns when it was last heard of, also once it is silent for too long or hangs up."""
    heard = time.monotonic()
    for _ in range(random.randint((ROUNDS + 1) // 2, ROUNDS)):
        # All rounds of the fleet fall on the same moments: waking once for 18 questions costs less than waking 18 times.
        due = (time.monotonic() // period + 1) * period
        await anyio.sleep(due - time.monotonic())
        if _was_late(due):
            heard = time.monotonic()
        if is_waited_for():
            break
        asked = time.monotonic()
        allowed = max(LEAST_PATIENCE, hung_after - (asked - heard))
        with anyio.move_on_after(allowed) as patience:
            try:
                report(Answering(await ask()))
            except ProtocolError as error:
                _tell(port, error)
                return heard
            heard = time.monotonic()
        if patience.cancelled_caught:
            # Its answer may lie there unread: a timer that is overdue cancels before we come to read.
            return time.monotonic() if _was_late(asked + allowed) else heard
    return heard


def _is_of(answering: int, pid: int) -> bool:
    """Whether it is this process that answers, or one that it started: a program may come with a launcher of its own."""
    try:
        return answering == pid or os.getsid(answering) == pid
    except OSError:
        return False


def _tell(port: int, error: ProtocolError) -> None:
    """That there is no answer is told by the verdict; another answer than was asked for is worth a line."""
    if not isinstance(error, PeerError):
        logger.warning("port %d answered a health check with: %s", port, error.sentence)


def _was_late(due: float) -> bool:
    """Whether it was us who slept over the end of a wait."""
    return time.monotonic() - due > OWN_LATENESS


class Watching:
    """The health checks of one name's processes: of one at a time. Written by its keeper.

    `report` is called with the pid and every verdict; `is_waited_for` as in `watch`.
    """

    def __init__(self, report: Callable[[int, Verdict], None], is_waited_for: Callable[[], bool]) -> None:
        self._report = report
        self._is_waited_for = is_waited_for
        self._scope: anyio.CancelScope | None = None

    def begin(self, group: anyio.abc.TaskGroup, config: ChildConfig, pid: int, settings: Supervision) -> None:
        """Watches a process in the keeper's own group, and nobody else any more."""
        self.end()
        scope = self._scope = anyio.CancelScope()
        period, hung_after = settings.health_period, settings.hung_after

        async def run() -> None:
            with scope:
                told = partial(self._report, pid)
                await watch(config, pid, period, hung_after, self._is_waited_for, told)

        group.start_soon(run)

    def end(self) -> None:
        if self._scope is not None:
            self._scope.cancel()
            self._scope = None


def judged(seen: HealthResponse) -> tuple[Event, str, str | None]:
    """What an answer means, its cause in words, and what to do."""
    if seen.backend.state in ("ready", "loading"):
        return Event.HEALTHY, "answers", None
    return Event.UNWELL, seen.backend.error or f"the model server is {seen.backend.state}", "chorus doctor"


def figures(config: ChildConfig, seen: HealthResponse) -> dict[str, object]:
    """What the registry takes of an answer, by the names of its fields."""
    of_everybody: dict[str, object] = {"in_flight": seen.in_flight, "rss_bytes": seen.rss_bytes}
    if isinstance(config, GatewayConfig):
        return of_everybody
    return of_everybody | {
        "model": seen.model,
        "backend": seen.backend.kind,
        "queued": seen.queued,
        "first_token_ms": seen.first_token_ms,
        "tokens_per_second": seen.tokens_per_second,
        "prompt_tokens_per_second": seen.prompt_tokens_per_second,
    }


def nothing_measured(config: ChildConfig) -> dict[str, object]:
    """What the registry takes of one that has ended."""
    of_everybody: dict[str, object] = {"in_flight": 0, "rss_bytes": None}
    return of_everybody if isinstance(config, GatewayConfig) else of_everybody | {"queued": 0}
