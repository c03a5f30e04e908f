from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import keeping
import pytest
from ports import free_port

from protocol.settings import SpecialistConfig
from supervisor.fleet import health
from supervisor.fleet.health import Answering, Silent, Verdict

PID = 7


class Scripted:
    """A specialist that answers health checks as a test has it."""

    def __init__(self) -> None:
        self.pid = PID
        self.is_silent = False
        self.is_deaf = False  # to connections that come from now on
        self.errors = 0  # so many questions are answered by an error
        self.connections = 0
        self.asked = 0
        self.is_waited_for = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        is_heard = not self.is_deaf
        while line := await reader.readline():
            request = json.loads(line)
            if request["type"] != "health":
                continue
            self.asked += 1
            if self.errors:
                self.errors -= 1
                writer.write(self.error(request["request_id"]))
            elif is_heard and not self.is_silent:
                writer.write(self.answer(request["request_id"]))
        writer.close()

    def error(self, request_id: int) -> bytes:
        answer = {
            "type": "error",
            "request_id": request_id,
            "code": "internal",
            "error": "no descriptors",
            "partial": "",
        }
        return json.dumps(answer).encode() + b"\n"

    def answer(self, request_id: int) -> bytes:
        answer = {
            "type": "health_response",
            "request_id": request_id,
            "ai_id": "apollo-ci",
            "status": "healthy",
            "component": "apollo",
            "model": "builtin",
            "pid": self.pid,
            "instance": "x",
            "clients": 1,
            "in_flight": 0,
            "queued": 0,
            "backend": {"kind": "builtin", "url": None, "state": "ready", "error": None},
            "uptime": 1.0,
            "rss_bytes": 1,
            "loop_lag_ms": 0.1,
        }
        return json.dumps(answer).encode() + b"\n"


class Watching:
    """A health watch on a scripted specialist, and what it reported."""

    def __init__(self, specialist: Scripted) -> None:
        self.specialist = specialist
        self.verdicts: list[Verdict] = []
        self._news = anyio.Event()

    def report(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        self._news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._news = anyio.Event()
            await self._news.wait()


def at(port: int) -> SpecialistConfig:
    """A specialist that listens there."""
    return keeping.specialist(Path("/nonexistent"), port=port)


@asynccontextmanager
async def watching(specialist: Scripted, *, period: float = 0.01, hung_after: float = 0.05) -> AsyncIterator[Watching]:
    server = await asyncio.start_server(specialist.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    told = Watching(specialist)
    async with server:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                waited_for = partial(getattr, specialist, "is_waited_for")
                group.start_soon(health.watch, at(port), PID, period, hung_after, waited_for, told.report)
                yield told
                group.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "START_WITHIN", 0.1)
    monkeypatch.setattr(health, "LEAST_PATIENCE", 0.05)


async def test_every_round_is_reported_and_some_go_over_one_connection() -> None:
    async with watching(Scripted()) as told:
        await told.until(lambda: told.specialist.connections == 4)
    assert all(isinstance(one, Answering) and one.health.pid == PID for one in told.verdicts)
    assert 3 * (1 + health.ROUNDS / 2) <= len(told.verdicts) - 1 <= 3 * (1 + health.ROUNDS)


async def test_the_door_is_tried_at_once_when_somebody_waits_there() -> None:
    specialist = Scripted()
    async with watching(specialist) as told:
        await told.until(lambda: len(told.verdicts) >= 2)
        specialist.is_waited_for = True
        seen = len(told.verdicts)
        await told.until(lambda: specialist.connections >= 4)
    assert len(told.verdicts) <= seen + 4
    assert all(isinstance(one, Answering) for one in told.verdicts)


async def test_one_that_answers_old_connections_and_no_new_one_is_silent() -> None:
    specialist = Scripted()
    async with watching(specialist) as told:
        await told.until(lambda: len(told.verdicts) >= 2)
        specialist.is_deaf = True
        await told.until(lambda: isinstance(told.verdicts[-1], Silent))


async def test_one_error_is_no_silence_however_long_all_went_well() -> None:
    specialist = Scripted()
    async with watching(specialist, hung_after=0.3) as told:
        began = time.monotonic()
        await told.until(lambda: time.monotonic() - began > 0.6)
        specialist.errors = 1
        await told.until(lambda: not specialist.errors)
        seen = len(told.verdicts)
        await told.until(lambda: len(told.verdicts) > seen + 2)
    assert all(isinstance(one, Answering) for one in told.verdicts)


async def test_nothing_but_errors_is_silence() -> None:
    specialist = Scripted()
    async with watching(specialist) as told:
        await told.until(lambda: len(told.verdicts) >= 2)
        specialist.errors = 10**6
        await told.until(lambda: isinstance(told.verdicts[-1], Silent))


async def test_silence_on_a_kept_connection_is_asked_about_at_the_door() -> None:
    """Our own loop may have been late, and the answer lies there unread: nobody is found hung without a second question."""
    specialist = Scripted()
    async with watching(specialist, hung_after=0.2) as told:
        await told.until(lambda: len(told.verdicts) >= 2)
        specialist.is_silent = True
        connections = specialist.connections
        while specialist.connections == connections:
            await anyio.lowlevel.checkpoint()
        specialist.is_silent = False
        seen = len(told.verdicts)
        await told.until(lambda: len(told.verdicts) > seen + 2)
    assert all(isinstance(one, Answering) for one in told.verdicts)


async def test_one_that_never_answers_is_silent() -> None:
    specialist = Scripted()
    specialist.is_silent = True
    async with watching(specialist) as told:
        await told.until(lambda: bool(told.verdicts))
    assert isinstance(told.verdicts[0], Silent)
    assert told.verdicts[0].seconds >= 0.1


async def test_one_that_stops_answering_is_silent() -> None:
    specialist = Scripted()
    async with watching(specialist) as told:
        await told.until(lambda: len(told.verdicts) >= 2)
        specialist.is_silent = True
        await told.until(lambda: isinstance(told.verdicts[-1], Silent))


async def test_one_that_answers_again_is_heard() -> None:
    specialist = Scripted()
    specialist.is_silent = True
    async with watching(specialist) as told:
        await told.until(lambda: bool(told.verdicts))
        specialist.is_silent = False
        await told.until(lambda: isinstance(told.verdicts[-1], Answering))


async def test_the_answer_of_another_process_is_not_counted() -> None:
    specialist = Scripted()
    specialist.pid = PID + 1
    async with watching(specialist) as told:
        await told.until(lambda: bool(told.verdicts))
        assert isinstance(told.verdicts[0], Silent)
        specialist.pid = PID
        await told.until(lambda: isinstance(told.verdicts[-1], Answering))


async def test_nobody_there_is_silence_too() -> None:
    told = Watching(Scripted())
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(health.watch, at(free_port()), PID, 0.01, 0.05, lambda: False, told.report)
            await told.until(lambda: bool(told.verdicts))
            group.cancel_scope.cancel()
    assert isinstance(told.verdicts[0], Silent)


@pytest.mark.parametrize("is_asking", [True, False])
async def test_a_pause_of_our_own_does_not_count(monkeypatch: pytest.MonkeyPatch, is_asking: bool) -> None:
    """As when the supervisor was stopped: its clock has gone on, and the timers are overdue when it wakes."""
    offset = 0.0
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + offset)
    specialist = Scripted()
    async with watching(specialist, hung_after=0.2) as told:
        await told.until(lambda: len(told.verdicts) >= 2)
        if is_asking:
            specialist.is_silent = True
            asked = specialist.asked
            while specialist.asked == asked:
                await anyio.lowlevel.checkpoint()
        offset = 8.0
        if is_asking:
            # The wait ends by its own (unshifted) timer; the clock says that we slept over it.
            connections = specialist.connections
            while specialist.connections == connections:
                await anyio.lowlevel.checkpoint()
            specialist.is_silent = False
        seen = len(told.verdicts)
        await told.until(lambda: len(told.verdicts) > seen + 2)
    assert all(isinstance(one, Answering) for one in told.verdicts)
