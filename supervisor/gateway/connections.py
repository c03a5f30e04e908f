"""How many connections there may be: whoever comes when there are too many takes the place of the eldest that only rests.

So somebody who opens connections and says nothing keeps nobody out. Those with a request under way stay.
"""

from __future__ import annotations

import asyncio

import anyio.lowlevel
from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestHandler

TO_ITS_HANDLER = 3  # turns of the loop until a request that has just come is with whoever answers it


class Connections:
    """Those of one server."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._busy: set[RequestHandler] = set()
        self.is_last_call = False  # answers from now on say that their connection is not to be used again

    @web.middleware
    async def kept(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A connection is none that rests while it has a request under way."""
        self._busy.add(request.protocol)
        try:
            return await handler(request)
        finally:
            self._busy.discard(request.protocol)

    async def last_call(self, request: web.Request, response: web.StreamResponse) -> None:
        """As answers begin: whoever keeps connections makes a new one then, and comes to our successor."""
        if self.is_last_call:
            response.headers["Connection"] = "close"
            response.force_close()

    def welcome(self, server: web.Server) -> asyncio.BaseProtocol:
        """What is to be done with somebody who has just come."""
        there = [one for one in server.connections if one.transport is not None and not one.transport.is_closing()]
        if len(there) >= self._most:
            eldest = next((one for one in there if one not in self._busy), None)
            if eldest is None or eldest.transport is None:
                return _TurnedAway()
            eldest.transport.abort()
        return server()

    async def hang_up(self, server: web.Server) -> None:
        """Ends those that rest, and the others with the answer that is under way."""
        server.pre_shutdown()
        for _ in range(TO_ITS_HANDLER):
            await anyio.lowlevel.checkpoint()
        for one in server.connections:
            # The library has ended the task of one that rests, and leaves it open: what came next was never answered.
            if one not in self._busy and one.transport is not None:
                one.transport.close()


class _TurnedAway(asyncio.Protocol):
    """Nothing is said: a word would wait for a client that may not read, and there are too many already."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()
