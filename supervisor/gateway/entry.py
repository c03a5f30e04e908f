"""How a browser comes in: its page sends a key once, and has a cookie from then on. What a page asks before anything else."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web
from msgspec import Struct

from supervisor.gateway.admission import UNKNOWN
from supervisor.gateway.guard import SIGHT
from supervisor.gateway.operation import Answer, Call, as_json
from supervisor.gateway.problem import Unauthorized


class EntryBody(Struct, frozen=True):
    """A key, as `chorus key create` printed it."""

    key: str


class Entry(Struct, frozen=True):
    """Who asks: the key, and what it is good for; no scope where a key is needed first. `ends_at` is a Unix time."""

    scope: str | None = None
    key_id: str | None = None
    ends_at: float | None = None


async def who(call: Call[None]) -> Answer:
    """Who asks, and whether a key is needed first."""
    try:
        caller = call.house.admission.caller(call.request)
    except Unauthorized:
        return Entry()
    return Entry(caller.scope, caller.id or None)


async def enter(call: Call[EntryBody]) -> Answer:
    """A cookie for a key. It ends after twelve hours, or with its key."""
    key = call.house.admission.key(call.body.key)
    if key is None:
        raise Unauthorized(UNKNOWN)
    value, ends_at = call.house.cookies.value(key)
    return _with_cookie(call, Entry(key.scope, key.id, ends_at), value)


async def leave(call: Call[None]) -> Answer:
    """The browser forgets its cookie."""
    return _with_cookie(call, Entry(), "")


def _with_cookie(call: Call[Any], entry: Entry, value: str) -> web.Response:
    secure = call.request[SIGHT].is_secure
    response = as_json(entry)
    response.set_cookie(
        call.house.cookies.name(secure=secure),
        value,
        max_age=max(0, int((entry.ends_at or 0.0) - time.time())),
        path="/",
        secure=secure,
        httponly=True,
        samesite="Strict",
    )
    return response
