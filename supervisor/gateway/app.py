"""The web application: the routes, and what stands before every one of them."""

from __future__ import annotations

from aiohttp import web

from supervisor.gateway.house import House
from supervisor.gateway.operation import bound
from supervisor.gateway.operations import OPERATIONS
from supervisor.gateway.problem import problems


def build(house: House) -> web.Application:
    """The application that serves this house. The house itself is run, and drained, by whoever made it."""
    app = web.Application(middlewares=[problems], client_max_size=house.config.settings.max_body_bytes)
    for operation in OPERATIONS:
        app.router.add_route(operation.method, operation.path, bound(operation, house))
    return app
