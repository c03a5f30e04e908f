"""What `chorus top` shows: samples of the team at work, and the live view that is made of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from typing import Any

import anyio
import anyio.abc
import click
import msgspec

from protocol.client import ControlConnection
from protocol.control import Gap, Snapshot, Status, StatusReport, Transition, Watch
from protocol.errors import ConnectionLost
from supervisor.cli import look
from supervisor.cli.exits import Exit, not_running
from supervisor.cli.meter import Meter
from supervisor.cli.reach import supervisor
from supervisor.cli.screen import Screen, keys
from supervisor.cli.toptable import HISTORY, ORDERS, Sample, View, frame, rows, table
from supervisor.config import Loaded

LOOK_EVERY = 1.0  # seconds between two looks; a change of state is shown at once
MEASURE_FOR = 1.0  # seconds between the two looks of a single sample
TOGETHER_EVERY = 10.0  # seconds: to count shared pages once, the kernel walks through all of them
PAGE = 10  # rows
ENDS = (signal.SIGTERM, signal.SIGHUP)
SIGNALS = (*ENDS, signal.SIGWINCH, signal.SIGTSTP)


class Figures:
    """Takes samples, one after the other, and remembers what the little curves need."""

    def __init__(self) -> None:
        self._meter = Meter()
        self._cpu: dict[str, deque[float]] = {}
        self._together: int | None = None
        self._together_at = float("-inf")

    async def take(self, asking: ControlConnection) -> Sample:
        report = await _report(asking)
        pids = [one.pid for one in report.everybody if one.pid]
        if self._meter.look([*pids, *([report.supervisor.pid] if report.supervisor.pid else [])]):
            for one in report.specialists:
                usage = self._meter.usage.get(one.pid) if one.pid else None
                if usage is None or usage.cpu is not None:
                    self._cpu.setdefault(one.name, deque(maxlen=HISTORY)).append(usage.cpu or 0.0 if usage else 0.0)
            if time.monotonic() - self._together_at >= TOGETHER_EVERY:
                self._together, self._together_at = self._meter.together(), time.monotonic()
        cpu = {name: list(figures) for name, figures in self._cpu.items()}
        return Sample(time.time(), report, self._meter.usage, cpu, self._together)


class Top:
    """The live view. `run` returns when somebody quits; raises Failure (exit 3) when the supervisor is not there any more."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._screen = Screen(sys.stdout, sys.stdin)
        self._view = View(
            painted=look.wants_colour(sys.stdout),
            curves=(sys.stdout.encoding or "").lower().replace("-", "") == "utf8",
        )
        self._figures = Figures()
        self._sample: Sample
        self._news = anyio.Event()
        self._ended_by: signal.Signals | None = None
        self._is_lost = False

    async def run(self) -> int:
        async with supervisor(self._loaded) as asking, supervisor(self._loaded) as watching:
            self._sample = await self._figures.take(asking)
            with anyio.open_signal_receiver(*SIGNALS) as signals:
                try:
                    self._screen.open()
                    async with anyio.create_task_group() as group:
                        group.start_soon(self._sampling, asking, group.cancel_scope)
                        group.start_soon(self._watching, watching, group.cancel_scope)
                        group.start_soon(self._ageing)
                        group.start_soon(self._typing, group.cancel_scope)
                        group.start_soon(self._signalled, signals, group.cancel_scope)
                except* OSError:
                    self._ended_by = self._ended_by or signal.SIGHUP  # the terminal is gone; its signal is on the way
                finally:
                    self._screen.close()
        if self._ended_by is not None:
            os.kill(os.getpid(), self._ended_by)  # with its usual meaning: whoever called us sees how we ended
        if self._is_lost:
            raise not_running("the supervisor has ended")
        return Exit.DONE

    async def _sampling(self, asking: ControlConnection, over: anyio.CancelScope) -> None:
        """Looks once a second, and at once when something has changed."""
        try:
            while True:
                self._draw()
                with anyio.move_on_after(LOOK_EVERY):
                    await self._news.wait()
                self._news = anyio.Event()
                self._sample = await self._figures.take(asking)
        except ConnectionLost:
            self._lose(over)

    async def _watching(self, watching: ControlConnection, over: anyio.CancelScope) -> None:
        try:
            async for change in watching.ask(Watch()):
                if isinstance(change, Snapshot | Transition | Gap):
                    self._news.set()
        except ConnectionLost:
            self._lose(over)

    async def _typing(self, over: anyio.CancelScope) -> None:
        keyboard = self._screen.keyboard
        if keyboard is None:
            return  # nobody types: it ends by a signal, or with the supervisor
        while True:
            await anyio.wait_readable(keyboard)
            data = os.read(keyboard, 1024)
            if not data:
                return  # the terminal is gone: SIGHUP says what that means
            typed = keys(data)
            if "q" in typed or "Q" in typed:
                over.cancel()
                return
            for key in typed:
                self._obey(key)
            self._draw()

    async def _ageing(self) -> None:
        """Shows that time passes while a supervisor that hangs leaves us without figures."""
        while True:
            await anyio.sleep(LOOK_EVERY)
            if time.time() - self._sample.at > 2 * LOOK_EVERY:
                self._draw()

    async def _signalled(self, signals: Any, over: anyio.CancelScope) -> None:
        async for number in signals:
            if number in ENDS:
                self._ended_by = number
                over.cancel()
                return
            if number == signal.SIGTSTP:
                self._screen.close()
                os.kill(os.getpid(), signal.SIGSTOP)
                self._screen.open()
            self._draw()

    def _obey(self, key: str) -> None:
        view = self._view
        if key in ORDERS:
            view.reverse = key == view.order and not view.reverse
            view.order, view.first = key, 0
        elif key in _STEPS:
            view.first = max(0, view.first + _STEPS[key])
        elif key == "redraw":
            self._screen.forget()

    def _draw(self) -> None:
        width, height = self._screen.size()
        self._screen.draw(frame(self._sample, self._view, width, height, time.time()))

    def _lose(self, over: anyio.CancelScope) -> None:
        self._is_lost = True
        over.cancel()


_EVERYBODY = 1_000_000  # rows, more than there can be
_STEPS = {
    "up": -1,
    "k": -1,
    "down": 1,
    "j": 1,
    "page up": -PAGE,
    "page down": PAGE,
    " ": PAGE,
    "home": -_EVERYBODY,
    "end": _EVERYBODY,
}


async def _report(asking: ControlConnection) -> StatusReport:
    result = await asking.call(Status())
    assert result.status is not None
    return result.status


async def sample(loaded: Loaded, as_json: bool) -> int:
    """One sample, measured over a second."""
    figures = Figures()
    async with supervisor(loaded) as asking:
        before = await figures.take(asking)
        await anyio.sleep(MEASURE_FOR)
        sample = await figures.take(asking)
    if as_json:
        click.echo(msgspec.json.encode(_as_object(sample, sample.at - before.at)).decode())
        return Exit.DONE
    view = View(painted=look.wants_colour(sys.stdout), curves=False)
    everybody = rows(sample, view)
    for line in table(everybody, everybody, view, look.width()):
        click.echo(line.rstrip())
    return Exit.DONE


def _as_object(sample: Sample, interval: float) -> dict[str, Any]:
    """`status --json` with what was measured besides; fields are only ever added."""
    report: dict[str, Any] = msgspec.to_builtins(sample.report)

    def measured(one: dict[str, Any]) -> dict[str, Any]:
        usage = sample.usage.get(one["pid"])
        if usage is None:
            return {**one, "cpu_percent": None}
        cpu = round(usage.cpu, 1) if usage.cpu is not None else None
        return {**one, "cpu_percent": cpu, "rss_bytes": usage.rss}

    return {
        **report,
        "interval": round(interval, 3),
        "pss_bytes": sample.together,
        "supervisor": measured(report["supervisor"]),
        "gateway": measured(report["gateway"]),
        "specialists": [measured(one) for one in report["specialists"]],
    }
