"""The web application: the routes, and what stands before every one of them."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from protocol.errors import Draining
from protocol.messages import BackendState, HealthResponse
from supervisor.fleet.processes import resident
from supervisor.gateway.house import House
from supervisor.gateway.operation import bound
from supervisor.gateway.operations import OPERATIONS
from supervisor.gateway.problem import problems

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build(house: House) -> web.Application:
    """The application that serves this house. The house itself is run, and drained, by whoever made it."""

    @web.middleware
    async def counted(request: web.Request, handler: Next) -> web.StreamResponse:
        house.begun()
        try:
            return await handler(request)
        finally:
            house.ended()

    @web.middleware
    async def drained(request: web.Request, handler: Next) -> web.StreamResponse:
        if not house.is_draining or request.path == "/health":
            return await handler(request)
        if "text/event-stream" in request.headers.get("Accept", "") and request.transport is not None:
            request.transport.abort()  # whoever follows events comes again; at a 503 EventSource gives up for good
        raise Draining("the gateway is going down: ask again", retry_after=1.0)

    async def health(_request: web.Request) -> web.Response:
        return web.json_response(body=msgspec.json.encode(how_it_is(house)))

    middlewares = [counted, problems, drained]
    app = web.Application(middlewares=middlewares, client_max_size=house.config.settings.max_body_bytes)
    app.router.add_get("/health", health)
    for operation in OPERATIONS:
        app.router.add_route(operation.method, operation.path, bound(operation, house))
    return app


def how_it_is(house: House) -> HealthResponse:
    """What the gateway says of itself; its supervisor asks for it too."""
    return HealthResponse(
        ai_id=house.config.ai_id,
        status="draining" if house.is_draining else "healthy",
        component=house.config.name,
        pid=os.getpid(),
        instance=house.instance,
        in_flight=house.in_flight - 1,  # without this very request
        backend=BackendState("gateway", None, "ready", None),
        uptime=round(time.monotonic() - house.born, 3),
        rss_bytes=resident(os.getpid()),
    )
