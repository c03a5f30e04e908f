"""Figures for Prometheus, in its text format (0.0.4). Every one is counted or measured here, or told by the supervisor.

Labels have few values: routes are the templates of paths, methods and statuses those of HTTP, specialists those of the team.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import anyio
from aiohttp import web

from protocol import __version__
from supervisor.fleet.lifecycle import State
from supervisor.fleet.processes import resident
from supervisor.gateway.histogram import Histogram
from supervisor.gateway.operation import Answer, Call
from supervisor.gateway.problem import LEFT

if TYPE_CHECKING:
    from supervisor.gateway.house import House

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
OTHER = "other"  # a method or a path that is none of ours: whoever asks could think of any number of them

Labels = Mapping[str, str]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Requests:
    """Requests that have ended, by method, route and status; and how many are under way."""

    def __init__(self) -> None:
        self.under_way = 0
        self._ended = anyio.Event()
        self.ended: Counter[tuple[str, str, int]] = Counter()

    @web.middleware
    async def counted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        status = LEFT
        self.under_way += 1
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            self.under_way -= 1
            self._ended.set()
            self._ended = anyio.Event()
            self.ended[_method(request), _route(request), status] += 1

    async def none_under_way(self) -> None:
        """Returns when that is so."""
        while self.under_way:
            await self._ended.wait()


def _method(request: web.Request) -> str:
    return request.method if request.method in METHODS else OTHER


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else OTHER


async def show(call: Call[None]) -> Answer:
    """Everything that is counted."""
    return web.Response(body=page(call.house).encode(), headers={"Content-Type": CONTENT_TYPE})


def page(house: House) -> str:
    """All figures at this moment."""
    sheet = _Sheet()
    sheet.one("chorus_gateway_info", "gauge", "The gateway that answers.", 1, {"version": __version__})
    sheet.many(
        "chorus_gateway_requests_total",
        "counter",
        "Requests that have ended.",
        (
            ({"method": method, "route": route, "status": str(status)}, count)
            for (method, route, status), count in house.requests.ended.items()
        ),
    )
    sheet.one("chorus_gateway_requests_in_flight", "gauge", "Requests under way.", house.requests.under_way)
    sheet.histogram(
        "chorus_gateway_first_token_seconds", "From a question to the first piece of its answer.", house.streams.spoke
    )
    sheet.one("chorus_gateway_streams", "gauge", "Answers and logs under way.", house.streams.under_way)
    sheet.one("chorus_gateway_readers", "gauge", "Connections that follow a stream.", house.beat.readers)
    sheet.one("chorus_gateway_events_sent_total", "counter", "Events written to readers.", house.beat.events)
    sheet.one("chorus_gateway_sent_bytes_total", "counter", "Bytes written to readers of streams.", house.beat.bytes)
    _team(sheet, house)
    sheet.one("process_resident_memory_bytes", "gauge", "Memory of this process.", resident(os.getpid()) or 0)
    sheet.one("process_cpu_seconds_total", "counter", "Processor time of this process.", round(time.process_time(), 3))
    sheet.one("process_start_time_seconds", "gauge", "When this process began.", round(house.born_at, 3))
    return sheet.text()


def _team(sheet: _Sheet, house: House) -> None:
    team = house.team
    sheet.one("chorus_supervisor_up", "gauge", "Whether a supervisor tells of the team.", int(team.is_told))
    states = Counter(one.state for one in team.specialists)
    known = [state.value for state in State]
    sheet.many(
        "chorus_specialists",
        "gauge",
        "Specialists by state.",
        (({"state": state}, states[state]) for state in dict.fromkeys([*known, *states])),
    )
    sheet.many(
        "chorus_specialist_restarts_total",
        "counter",
        "Restarts that nobody asked for.",
        (({"specialist": one.name}, one.restarts) for one in team.specialists),
    )


class _Sheet:
    """The page while it is written."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def one(self, name: str, kind: str, about: str, value: float, labels: Labels | None = None) -> None:
        self.many(name, kind, about, [(labels or {}, value)])

    def many(self, name: str, kind: str, about: str, values: Iterable[tuple[Labels, float]]) -> None:
        self._lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        self._lines += [f"{name}{_braces(labels)} {value}" for labels, value in values]

    def histogram(self, name: str, about: str, of: Histogram) -> None:
        self._lines += [f"# HELP {name} {about}", f"# TYPE {name} histogram"]
        count = 0
        for bound, more in zip((*map(str, of.bounds), "+Inf"), of.counts, strict=True):
            count += more
            self._lines.append(f"{name}_bucket{_braces({'le': bound})} {count}")
        self._lines += [f"{name}_sum {round(of.sum, 6)}", f"{name}_count {count}"]

    def text(self) -> str:
        return "\n".join([*self._lines, ""])


def _braces(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
