"""The web application: the routes, and what stands before every one of them."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from protocol.messages import BackendState, HealthResponse
from supervisor.fleet.processes import resident
from supervisor.gateway.house import House


def build(house: House) -> web.Application:
    """The application that serves this house. The house itself is run, and drained, by whoever made it."""

    @web.middleware
    async def counted(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        house.begun()
        try:
            return await handler(request)
        finally:
            house.ended()

    async def health(_request: web.Request) -> web.Response:
        return web.json_response(body=msgspec.json.encode(how_it_is(house)))

    app = web.Application(middlewares=[counted], client_max_size=house.config.settings.max_body_bytes)
    app.router.add_get("/health", health)
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
