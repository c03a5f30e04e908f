"""How much one caller may ask for: so many requests in a minute, so many under way at a time, so long a body, in so much time.

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
from supervisor.gateway.operation import OWNER, Scope
from supervisor.gateway.problem import Encoded, TooLarge, TooMany, TooSlow

CALLERS = 4096  # whose rate is known at a time; the one that has not asked for longest is forgotten first
BODY_WITHIN = 60.0  # seconds
ALL_BODIES = 67_108_864  # bytes of bodies that are being read at a time


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


class Bodies:
    """Reads requests' bodies, all of them together within bounds."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes of bodies that are being read at this moment."""
        return self._held

    async def read(self, request: web.Request) -> bytes:
        """The body. Raises TooLarge, TooSlow, TooMany, and Encoded for one that is compressed.

        A compressed one would be small on the way and large here, which is of no use to anybody honest on loopback.
        """
        if "Content-Encoding" in request.headers:
            raise Encoded("the body is compressed: send it as it is, without Content-Encoding")
        if (request.content_length or 0) > self._most:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            with anyio.fail_after(BODY_WITHIN):
                async for part in request.content.iter_any():
                    size += len(part)
                    self._held += len(part)
                    if size > self._most:
                        raise self._too_large()
                    if self._held > ALL_BODIES:
                        raise TooMany("too many large requests are being read: try again", retry_after=1.0)
                    parts.append(part)
        except TimeoutError:
            raise TooSlow(f"the body did not arrive within {BODY_WITHIN:g} s") from None
        finally:
            self._held -= size
        return b"".join(parts)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self._most} bytes: send less, or raise gateway.max_body_bytes")


class Limits:
    """All of them, in one place for the house. Of the counts there is one writer, this module."""

    def __init__(self, settings: Gateway) -> None:
        self.rates = Rates(settings.requests_per_minute)
        self.under_way = UnderWay(settings.in_flight)
        self.bodies = Bodies(settings.max_body_bytes)


def limiting(limits: Limits, scopes: Mapping[web.AbstractRoute, Scope]) -> Middleware:
    """The limits before every route that is not open, for as long as its response lasts."""

    @web.middleware
    async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
        if scopes.get(request.match_info.route) == "open":
            return await handler(request)
        owner = request.get(OWNER, "")
        wait = limits.rates.take(owner or f"from {request.remote}", anyio.current_time())
        if wait:
            raise TooMany("too many requests in a minute: wait, or raise gateway.requests_per_minute", retry_after=wait)
        with limits.under_way.one_more(owner):
            return await handler(request)

    return limit
