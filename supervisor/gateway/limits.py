"""How much one caller may ask for: so many requests in a minute, so many under way at a time.

A caller is a key, or without one the address that it comes from. What is open to everybody is not counted: a probe that looks
every second must not be refused because others are busy.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import anyio
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from protocol.settings import Gateway
from supervisor.gateway.bodies import Bodies
from supervisor.gateway.operation import OWNER, Scope
from supervisor.gateway.problem import TooMany

CALLERS = 4096  # whose rate is known at a time; the one that has not asked for longest is forgotten first
SENT_WITHIN = 60.0  # seconds for a whole answer; a stream has a rule of its own


class Rates:
    """A bucket of tokens for each caller: one for each request, `per_minute` of them to begin with and in every minute."""

    def __init__(self, per_minute: int) -> None:
        self._most = float(per_minute)
        self._every = 60.0 / per_minute  # seconds to a token
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and at which instant

    def take(self, caller: str, now: float) -> float:
        """Takes a token: 0, or where there is none the seconds until there is."""
        tokens, then = self._buckets.pop(caller, (self._most, now))
        tokens = min(self._most, tokens + (now - then) / self._every)
        is_enough = tokens >= 1
        self._buckets[caller] = (tokens - is_enough, now)
        if len(self._buckets) > CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if is_enough else (1 - tokens) * self._every


class UnderWay:
    """How many requests each key has under way, and all callers without one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self._of.total()

    @contextmanager
    def one_more(self, key_id: str) -> Iterator[None]:
        """A request, for as long as the block lasts. Raises TooMany."""
        if self._of[key_id] >= self._most:
            raise TooMany(f"{self._most} requests are under way: wait, or raise gateway.in_flight", retry_after=1.0)
        self._of[key_id] += 1
        try:
            yield
        finally:
            self._of[key_id] -= 1
            if not self._of[key_id]:
                del self._of[key_id]


class Limits:
    """All of them, in one place for the house. Of the counts there is one writer, this module."""

    def __init__(self, settings: Gateway) -> None:
        self.rates = Rates(settings.requests_per_minute)
        self.under_way = UnderWay(settings.in_flight)
        self.bodies = Bodies(settings.max_body_bytes)


def limiting(limits: Limits, scopes: Mapping[web.AbstractRoute, Scope]) -> Middleware:
    """The limits before every route that is not open, until the response has been sent."""

    @web.middleware
    async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
        if scopes.get(request.match_info.route) == "open":
            return await handler(request)
        owner = request.get(OWNER, "")
        wait = limits.rates.take(owner or f"from {request.remote}", anyio.current_time())
        if wait:
            raise TooMany("too many requests in a minute: wait, or raise gateway.requests_per_minute", retry_after=wait)
        with limits.under_way.one_more(owner):
            response = await handler(request)
            await _send(request, response)
            return response

    return limit


async def _send(request: web.Request, response: web.StreamResponse) -> None:
    """Sends a whole answer, or what is left of it: the library would wait for ever for whoever does not read."""
    with anyio.move_on_after(SENT_WITHIN) as patience:
        await response.prepare(request)
        await response.write_eof()
    if patience.cancelled_caught:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the caller did not take the answer")
