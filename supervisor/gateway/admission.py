"""Who asks, and whether that is enough: a key, a cookie that stands for one, or being at home.

At home is a program of the team's own user on the gateway's own machine, that asks by a name of loopback: it needs no key.
Users whom the configuration allows to talk to the specialists are as guests there. Everybody else needs a key: other users,
other machines, other names (a proxy or a tunnel is behind those), and whoever comes where the configuration wants a key of
everybody. Routes are closed unless their operation says that they are open.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from functools import lru_cache

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from msgspec import Struct

from protocol import peer
from protocol.errors import BadRequest, Forbidden, Unavailable
from protocol.settings import GatewayConfig
from supervisor.gateway.cookie import Cookies
from supervisor.gateway.guard import SIGHT, only
from supervisor.gateway.keys import LOOKS_SECRET, PREFIX, Key, Keys, KeyScope
from supervisor.gateway.operation import OWNER, Scope
from supervisor.gateway.problem import Unauthorized
from supervisor.gateway.uses import Uses

ROOT = 0
HEALTH = "/health"  # of a gateway that lets nobody in, too: its supervisor asks
SECRETS = frozenset({"key", "api_key", "apikey", "api-key", "x-api-key", "access_token", "authorization", "token"})
MAKE_ONE = "chorus key create makes one"
UNKNOWN = "this key is none of ours, or it has expired or was revoked: chorus key list"


class Caller(Struct, frozen=True):
    """Who asks: the id of a key, or "" without one, and what that is good for."""

    id: str
    scope: KeyScope


AT_HOME = Caller("", "admin")
GUEST = Caller("", "chat")


class Admission:
    """Lets callers in. `scopes` says what each route takes."""

    def __init__(self, config: GatewayConfig, keys: Keys, cookies: Cookies, uses: Uses) -> None:
        self._settings = config.settings
        self._keys = keys
        self._cookies = cookies
        self._uses = uses
        self._callers = {**dict.fromkeys(config.allowed_uids, GUEST), os.getuid(): AT_HOME, ROOT: AT_HOME}
        self._is_exposed = not all(_is_loopback(address) for address, _ in config.places)
        self._wants_keys = self._is_exposed or config.settings.behind_proxy or config.settings.require_key

    @property
    def obstacle(self) -> str | None:
        """Why nobody is let in, and what to do; None where all is well."""
        settings = self._settings
        if self._is_exposed and not settings.tls_certificate and not settings.behind_proxy:
            return (
                f"gateway.host = {settings.host} without TLS would send keys and answers readable for everybody: set "
                "gateway.tls_certificate and gateway.tls_key, or gateway.behind_proxy where a proxy has them"
            )
        if self._wants_keys and not self._keys.exist:
            return f"every caller needs a key here, and there is none: {MAKE_ONE}"
        return None

    def caller(self, request: web.Request) -> Caller:
        """Who asks. Raises Unauthorized, and BadHttp for more than one key."""
        given = only(request, "X-API-Key") or _bearer(request)
        if given is None:
            key = self._of_cookie(request)
        else:
            key = self.key(given)
            if key is None and not (self._is_ignored(given) and self._at_home(request)):
                raise Unauthorized(UNKNOWN)
        if key is not None:
            self._uses.note(key.id)
            return Caller(key.id, key.scope)
        if (caller := self._at_home(request)) is not None:
            return caller
        raise Unauthorized(f"a key is needed, as X-API-Key or as Authorization: Bearer; {MAKE_ONE}")

    def key(self, text: str) -> Key | None:
        """The key of this text. Raises Unavailable where the keys cannot be read."""
        return self._keys.find(text)

    def _is_ignored(self, given: str) -> bool:
        """Whether it is what a client sends that must send something; one that was ours once is not."""
        return not given.startswith(PREFIX) and not self._keys.exist

    def _at_home(self, request: web.Request) -> Caller | None:
        return self._neighbour(request) if not self._wants_keys and request[SIGHT].is_local else None

    def _of_cookie(self, request: web.Request) -> Key | None:
        """The key that our own page has a cookie for.

        A browser sends it to every port of this host: whatever another user serves there has seen it, and may not use it.
        """
        sight = request[SIGHT]
        cookie = request.cookies.get(self._cookies.name(secure=sight.is_secure)) if sight.is_ours else None
        if not cookie or not (self._settings.behind_proxy or not _is_near(request) or self._neighbour(request)):
            return None
        return self._cookies.key_of(cookie, self._keys)

    def _neighbour(self, request: web.Request) -> Caller | None:
        """Who it is by the user whose process asks from this machine; None for other machines and other users."""
        theirs, ours = _ends(request)
        if not _is_loopback(theirs[0]):
            return None
        family = socket.AF_INET6 if ":" in theirs[0] else socket.AF_INET
        match peer.ask(family, theirs, ours):
            case peer.Owner(uid=uid):
                return self._callers.get(uid)
            case peer.Gone():
                raise ConnectionResetError("the caller left before its request was looked at")
            case _:
                return AT_HOME  # this system does not say


def _is_near(request: web.Request) -> bool:
    """Whether the caller is on this machine."""
    return _is_loopback(_ends(request)[0][0])


def _ends(request: web.Request) -> tuple[peer.Address, peer.Address]:
    """The caller's end of the connection, and ours."""
    transport = request.transport
    theirs = transport.get_extra_info("peername") if transport is not None else None
    ours = transport.get_extra_info("sockname") if transport is not None else None
    if not theirs or not ours:
        raise ConnectionResetError("the caller left before its request was looked at")
    return theirs[:2], ours[:2]


def admitting(admission: Admission, scopes: Mapping[web.AbstractRoute, Scope]) -> Middleware:
    """Admission before every route."""

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        _refuse_in_url(request)
        if request.path != HEALTH and (obstacle := admission.obstacle) is not None:
            raise Unavailable(obstacle, retry_after=60.0)
        scope = scopes.get(request.match_info.route, "chat")  # what is nowhere, too
        if scope != "open":
            caller = admission.caller(request)
            request[OWNER] = caller.id
            if scope == "admin" and caller.scope != "admin":
                who = f"key {caller.id}" if caller.id else "this user"
                raise Forbidden(f"{who} may chat, and this is for admins: chorus key create --scope admin")
        return await handler(request)

    return admit


def _bearer(request: web.Request) -> str | None:
    """The key of an Authorization header. One of another scheme is meant for a proxy before us."""
    scheme, _, text = (only(request, "Authorization") or "").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else None


def _refuse_in_url(request: web.Request) -> None:
    """A URL is written to logs, histories and other pages' referrers: what is secret must not work there."""
    for name, value in request.query.items():
        if name.lower() in SECRETS or LOOKS_SECRET.search(value):
            raise BadRequest(
                f"{name[:64]!r} in a URL is not secret: send it as X-API-Key, and revoke it: chorus key revoke"
            )


@lru_cache(64)
def _is_loopback(address: str) -> bool:
    return address == "localhost" or ipaddress.ip_address(address.partition("%")[0]).is_loopback
