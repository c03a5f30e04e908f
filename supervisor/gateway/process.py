"""The gateway's process: its event loop, its signals, its end. To whoever keeps it, it is what a specialist's daemon is.

TERM and INT end it in good order, and a second one ends the grace of what is under way; USR1 makes it refuse new requests
and stay, or after TERM, wait for the second one however long that takes; USR2 writes every thread's stack to standard error.

    house                       streams, the team as it is known; last down
    └── application             routes and their handlers, which end by themselves, or are ended
        └── listeners           ours and others': closed first, and never shut down
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import math
import signal
import socket
import ssl
import sys
from typing import Protocol

import anyio
import anyio.abc
from aiohttp import web

from protocol.settings import BACKLOG, Gateway, GatewayConfig
from supervisor.gateway.app import build
from supervisor.gateway.follow import GONE_AFTER
from supervisor.gateway.house import House
from supervisor.gateway.tls import HANDSHAKE_WITHIN, BadCertificate, Certificate

logger = logging.getLogger("chorus.gateway")

END_MARGIN = 5.0  # seconds a service manager waits longer than our own grace
FIRST_WORDS = 0.25  # seconds from the accept that a new connection has for its first request when we are about to end
LAST_WORDS = 0.5  # seconds for a handler that was told to end to do so, and again for one that was cancelled


class ServiceManager(Protocol):
    """Whom a unit of systemd tells how it is."""

    def say(self, *lines: str) -> None: ...

    async def keep_alive(self) -> None: ...


def run(config: GatewayConfig, listeners: list[socket.socket], manager: ServiceManager | None = None) -> None:
    """Serves until a signal ends it. Closes the listeners; whoever else holds them still does.

    `manager` is given where this process is a unit of its own, and only there. Raises SystemExit with a sentence where it
    cannot serve as it is told to.
    """
    faulthandler.enable(sys.stderr, all_threads=True)
    faulthandler.register(signal.SIGUSR2, file=sys.stderr, all_threads=True)
    anyio.run(_serve, config, listeners, _certificate(config.settings), manager or _Nobody())


class _Nobody:
    def say(self, *lines: str) -> None: ...

    async def keep_alive(self) -> None: ...


async def _serve(
    config: GatewayConfig, listeners: list[socket.socket], certificate: Certificate | None, manager: ServiceManager
) -> None:
    house = House(config)
    stop, grace = anyio.Event(), anyio.CancelScope()

    def end() -> None:
        if stop.is_set():
            logger.info("told to end twice: what is under way ends now")
            grace.cancel()
            return
        grace.deadline = anyio.current_time() + config.grace
        patience = f"EXTEND_TIMEOUT_USEC={int((config.grace + END_MARGIN) * 1e6)}"
        manager.say("STOPPING=1", "STATUS=what is under way is finished", patience)
        stop.set()

    def refuse() -> None:
        if stop.is_set():
            logger.info("told to wait: what is under way goes on until the next TERM")
            grace.deadline = math.inf
            return
        house.is_draining = True
        logger.info("draining: new requests are refused")
        manager.say("STATUS=draining: new requests are refused")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGUSR1, refuse)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.keep_alive)
        await tasks.start(house.run)
        if certificate is not None:
            tasks.start_soon(certificate.run)
        door = Door(house, listeners, certificate.context if certificate is not None else None)
        await door.open()
        logger.info("listening at %s", config.url)
        manager.say("READY=1", f"STATUS=listening at {config.url}")
        await stop.wait()
        await door.close()
        with grace:
            await house.drain(math.inf)
        await house.drain(0.0)
        await door.see_off()
        tasks.cancel_scope.cancel()
    logger.info("stopped in good order")


class Door:
    """Where requests come in. The listeners are others' too: a successor accepts on them before we have closed ours."""

    def __init__(self, house: House, listeners: list[socket.socket], tls: ssl.SSLContext | None) -> None:
        self._connections = house.connections
        self._listeners = listeners
        self._tls = tls
        self._accepted = -math.inf  # when somebody was, last
        self._open: list[asyncio.Server] = []
        self._runner = web.AppRunner(build(house), shutdown_timeout=LAST_WORDS)

    async def open(self) -> None:
        """Accepts from here on."""
        await self._runner.setup()
        for listener in self._listeners:
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # inherited by what is accepted
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_AFTER)
            # Not a SockSite, which does not tell when it has accepted somebody.
            server = await asyncio.get_running_loop().create_server(
                self._welcome,
                sock=listener,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_WITHIN if self._tls else None,
                backlog=BACKLOG,
            )
            self._open.append(server)

    async def close(self) -> None:
        """Accepts nobody any more. Who was just accepted is still heard; who only rests is hung up on."""
        for server in self._open:
            server.close()
        assert self._runner.server is not None
        self._connections.is_last_call = True
        latest = anyio.current_time() if self._runner.server.connections else self._accepted
        await anyio.sleep_until(latest + FIRST_WORDS)
        await self._connections.hang_up(self._runner.server)

    async def see_off(self) -> None:
        """Ends the handlers that are still there."""
        await self._runner.cleanup()

    def _welcome(self) -> asyncio.BaseProtocol:
        self._accepted = anyio.current_time()
        assert self._runner.server is not None
        return self._connections.welcome(self._runner.server)


def _certificate(settings: Gateway) -> Certificate | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    try:
        return Certificate(settings.tls_certificate, settings.tls_key)
    except BadCertificate as error:
        raise SystemExit(str(error)) from None
