"""Who may knock: the names by which a request asks for us, and the pages it may come from. On every route, before any.

A web page anywhere can have its visitor's browser send us requests. It cannot do three things, and each is looked for here:

Host              it says where the browser was led: a name that somebody points at 127.0.0.1 is not among ours
Origin            it says whose page asks, wherever a page reads answers, posts, or opens a WebSocket
Sec-Fetch-Site    it says the same of an <img> and a <script>, which send no Origin

Programs send none of the last two, and are let through.
"""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from msgspec import Struct
from msgspec.structs import replace

from protocol.errors import Forbidden
from protocol.settings import EVERY_ADDRESS, Gateway
from supervisor.gateway.origin import (
    LOOPBACK,
    Authority,
    Origin,
    is_address,
    of_setting,
    origins,
    read_authority,
    read_origin,
)
from supervisor.gateway.origin import PORTS as DEFAULT_PORTS
from supervisor.gateway.problem import BadHttp, Misdirected

PAGE = "/"  # what a person may be led to by a link on somebody's page
OUR_PAGES = ("same-origin", "none")  # none: typed, or a bookmark
MAY_SEND = (
    "Authorization, X-API-Key, Content-Type, Idempotency-Key, Last-Event-ID, "
    "MCP-Protocol-Version, Mcp-Method, Mcp-Name, Mcp-Session-Id"
)
MAY_READ = "X-Stream-Id, Mcp-Session-Id, Retry-After, Content-Location"
METHODS = "GET, POST, PUT, DELETE"
REMEMBERED = "600"  # seconds a browser may go by what it was told of another page
# A page of ours loads from us, sends to us, and is shown in nobody's frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Sight(Struct, frozen=True):
    """What a request says of where it goes and whence it comes.

    `is_local` is whether it asks by a name of loopback, `is_secure` whether it came by TLS, `is_ours` whether our own page
    asks, for certain; `foreign` is the Origin of another page that may.
    """

    is_local: bool
    is_secure: bool
    is_ours: bool = False
    foreign: str | None = None


SIGHT = web.RequestKey("sight", Sight)


class Guard:
    """The names that are ours, and the pages that may ask."""

    def __init__(self, settings: Gateway, scheme: str) -> None:
        self._scheme = scheme
        self._is_behind_proxy = settings.behind_proxy
        self._takes_addresses = settings.host in EVERY_ADDRESS  # all that are ours, and they are many
        self._hosts = LOOPBACK | {of_setting(one) for one in (settings.host, *settings.allowed_hosts)}
        self._origins = origins(settings.allowed_origins)

    def look(self, request: web.Request) -> Sight:
        """Raises BadHttp, Misdirected and Forbidden for whoever may not knock."""
        asked, schemes = self._asked(request), self._schemes(request)
        sight = Sight(is_local=asked.host in LOOPBACK, is_secure=schemes == ["https"])
        origin = only(request, "Origin")
        if origin is None:
            return replace(sight, is_ours=self._site(request))
        page = read_origin(origin)
        own = [Origin(one, asked.host, asked.port or DEFAULT_PORTS.get(one, 0)) for one in schemes]
        if page is not None and page in own:
            self._site(request)
            return replace(sight, is_ours=True)
        if page is not None and page in self._origins:
            return replace(sight, foreign=origin)
        raise Forbidden(f"{origin[:100]!r} is not among the pages that may ask: gateway.allowed_origins names others")

    def _asked(self, request: web.Request) -> Authority:
        """The name it asks for us by."""
        said = only(request, "Host")
        if said is None:
            raise BadHttp("there is no Host: say whom you ask")
        if not _is_path(request.raw_path, said):
            raise BadHttp(f"{request.raw_path[:100]!r} is no path of ours")
        if self._is_behind_proxy:
            said = only(request, "X-Forwarded-Host") or said
        asked = read_authority(said)
        if asked is None or not (asked.host in self._hosts or (self._takes_addresses and is_address(asked.host))):
            raise Misdirected(f"{said[:100]!r} is no name of this gateway: gateway.allowed_hosts names others")
        return asked

    def _schemes(self, request: web.Request) -> list[str]:
        """How it came: http or https, or either where a proxy does not say."""
        if not self._is_behind_proxy:
            return [self._scheme]
        told = only(request, "X-Forwarded-Proto")
        return [told.lower()] if told else list(DEFAULT_PORTS)

    def _site(self, request: web.Request) -> bool:
        """Whether a browser says that our own page asks. Raises Forbidden where it says that another's does."""
        sites = request.headers.getall("Sec-Fetch-Site", [])
        if all(site in OUR_PAGES for site in sites) or _is_link(request):
            return sites == ["same-origin"]
        raise Forbidden("another page asks, which says not whose it is: gateway.allowed_origins names those that may")


def guarded(guard: Guard) -> Middleware:
    """The guard before every route. Answers browsers that ask on behalf of another page what it may do."""

    @web.middleware
    async def look(request: web.Request, handler: Handler) -> web.StreamResponse:
        sight = request[SIGHT] = guard.look(request)
        if request.method == "OPTIONS" and sight.foreign and "Access-Control-Request-Method" in request.headers:
            return web.Response(
                status=204,
                headers={
                    "Access-Control-Allow-Methods": METHODS,
                    "Access-Control-Allow-Headers": MAY_SEND,
                    "Access-Control-Max-Age": REMEMBERED,
                },
            )
        return await handler(request)

    return look


async def dress(request: web.Request, response: web.StreamResponse) -> None:
    """What every response says to a browser, streams too: a signal's receiver, on_response_prepare."""
    headers = response.headers
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers.setdefault("Cache-Control", "no-store")
    headers["Vary"] = "Origin"
    if response.content_type == "text/html":
        headers["Content-Security-Policy"] = POLICY
        headers["Cross-Origin-Opener-Policy"] = "same-origin"
    sight = request.get(SIGHT)
    if sight is not None and sight.foreign:
        headers["Access-Control-Allow-Origin"] = sight.foreign
        headers["Access-Control-Expose-Headers"] = MAY_READ


def only(request: web.Request, name: str) -> str | None:
    """The value of a header that there is once, or not at all. Raises BadHttp."""
    values = request.headers.getall(name, [])
    if len(values) > 1:
        raise BadHttp(f"{name} is there {len(values)} times: once is enough")
    return values[0] if values else None


def _is_path(target: str, host: str) -> bool:
    """Whether what is asked for is a path. RFC 9112, 3.2.2: a proxy is asked for a whole URL, of the same Host."""
    if target.startswith("/") or target == "*":
        return True
    return target.partition("://")[2].partition("/")[0].partition("?")[0].lower() == host.lower()


def _is_link(request: web.Request) -> bool:
    """A person follows a link on somebody's page to ours."""
    says = request.headers.get
    return (
        request.method == "GET"
        and request.raw_path.partition("?")[0] == PAGE
        and says("Sec-Fetch-Mode") == "navigate"
        and says("Sec-Fetch-Dest") == "document"
    )
