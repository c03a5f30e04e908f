"""One after the other is asked: where the best fails before its first token, and the rules allow it, the next best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

from protocol.errors import CallerError, ProtocolError, Stalled
from protocol.messages import AnyReply, Heartbeat, StreamChunk, StreamStatus
from supervisor.team.chat import Member
from supervisor.team.routing import Choice

if TYPE_CHECKING:
    from supervisor.gateway.house import House

AGAIN_AFTER = 0.2  # seconds before one is asked a second time

Hear = Callable[[AnyReply], None]
Ask = Callable[[Member, int, Hear], Awaitable[None]]  # whom, for the how-manieth time, and who is told of every reply


async def attempted(house: House, choice: Choice, ask: Ask) -> None:
    """Asks whoever was chosen until one has answered. Raises what the last one failed with."""
    rules, ranked = house.router.rules, [*choice.chosen, *choice.others]
    for attempt, name in enumerate(itertools.cycle(ranked), 1):
        if attempt > len(ranked):
            await anyio.sleep(AGAIN_AFTER)
        listening = Listening(name, rules.timeout_of(name))
        try:
            with house.router.gives(name), listening.patience():
                await ask(house.team.member(name), attempt, listening.hear)
            return
        except ProtocolError as error:
            if listening.spoke or isinstance(error, CallerError) or attempt >= rules.retry_policy.attempts:
                raise


class Listening:
    """How one answer comes along: whether it has begun, and whether it has been silent for too long."""

    def __init__(self, name: str, timeout: float | None) -> None:
        self.spoke = False
        self._name = name
        self._timeout = timeout if timeout is not None else math.inf
        self._scope = anyio.CancelScope()

    def hear(self, reply: AnyReply) -> None:
        match reply:
            case Heartbeat():
                return  # its process lives; its answer does not grow
            case StreamChunk():
                self.spoke = True
        is_loading = isinstance(reply, StreamStatus) and reply.phase == "loading"
        self._scope.deadline = math.inf if is_loading else anyio.current_time() + self._timeout

    @contextmanager
    def patience(self) -> Iterator[None]:
        """The time of the answer. Raises Stalled for one that was silent for too long."""
        self._scope.deadline = anyio.current_time() + self._timeout
        with self._scope:
            yield
        if self._scope.cancelled_caught:
            raise Stalled(
                f"{self._name} was silent for {self._timeout:g} s: raise timeout_settings, or see chorus models"
            )
