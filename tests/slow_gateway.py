"""A gateway with a route that takes its time, in the place of our own: `GatewayConfig.module` names it.

`GET /slow?until=FILE` begins an answer at once and ends it when there is such a file.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from aiohttp import web

from protocol.settings import GatewayConfig
from supervisor.gateway import process
from supervisor.gateway.app import build
from supervisor.gateway.house import House


def run(config: GatewayConfig, listeners: list[socket.socket]) -> None:
    process.build = slow  # type: ignore[attr-defined]
    process.run(config, listeners)


def slow(house: House) -> web.Application:
    async def answer(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"begun\n")
        while not Path(request.query["until"]).exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.01)
        await answer.write(b"done\n")
        return answer

    app = build(house)
    app.router.add_get("/slow", answer)
    return app
