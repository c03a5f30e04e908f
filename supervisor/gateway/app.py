"""The web application: the routes, and what stands before every one of them.

counted       figures; and a drain waits for what is under way
kept          a connection with a request under way makes no room for others
logged        a line in the log, for what the others refuse, too
problems      every failure is answered
guarded       the names that are ours, the pages that may ask
drained       nothing new any more
admitting     the key, and what it is good for
limiting      so much and no more
"""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from protocol.errors import Draining
from supervisor.gateway import openai_wire
from supervisor.gateway.accesslog import library_log, logged
from supervisor.gateway.admission import admitting
from supervisor.gateway.guard import dress, guarded
from supervisor.gateway.house import House
from supervisor.gateway.limits import limiting
from supervisor.gateway.operation import Scope, bound
from supervisor.gateway.operations import OPERATIONS
from supervisor.gateway.problem import Form, problems

FORMS: dict[str, Form] = {"/v1/": openai_wire.as_error}  # of errors, below these prefixes

KEPT_ALIVE = 75.0  # seconds a connection may rest, or take to its first whole head; the library's own is an hour


def build(house: House) -> web.Application:
    """The application that serves this house. The house itself is run, and drained, by whoever made it."""

    @web.middleware
    async def drained(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not house.is_draining or request.path == "/health":
            return await handler(request)
        if "text/event-stream" in request.headers.get("Accept", "") and request.transport is not None:
            request.transport.abort()  # whoever follows events comes again; at a 503 EventSource gives up for good
        raise Draining("the gateway is going down: ask again", retry_after=1.0)

    scopes: dict[web.AbstractRoute, Scope] = {}
    app = web.Application(
        middlewares=[
            house.requests.counted,
            house.connections.kept,
            logged,
            problems(FORMS),
            guarded(house.guard),
            drained,
            admitting(house.admission, scopes),
            limiting(house.limits, scopes),
        ],
        client_max_size=house.config.settings.max_body_bytes,
        handler_args={
            "handler_cancellation": True,  # else a client that has left is never noticed
            "keepalive_timeout": KEPT_ALIVE,
            "auto_decompress": False,  # a small body must not become a large one
            "logger": library_log(),
            "access_log": None,
        },
    )
    app.on_response_prepare.append(dress)
    app.on_response_prepare.append(house.connections.last_call)
    for operation in OPERATIONS:
        answer = bound(operation, house)
        # aiohttp leaves the body out; what does not end has no HEAD
        methods = (
            ["GET", "HEAD"] if operation.method == "GET" and "events" not in operation.kinds else [operation.method]
        )
        for method in methods:
            scopes[app.router.add_route(method, operation.path, answer)] = operation.scope
    return app
