"""The process of one specialist: its event loop, its signals, its end.

TERM and INT end it in good order; USR1 makes it refuse new requests and stay; USR2 writes every thread's stack to standard
error, which is how a hang is told from outside.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
import socket
import sys

import anyio

from daemon.backends.open import open_backend
from daemon.server import Server
from daemon.specialist import Specialist
from protocol.settings import SpecialistConfig

logger = logging.getLogger("chorus.daemon")


def run(config: SpecialistConfig, listeners: list[socket.socket]) -> None:
    """Serves until a signal ends it. Closes the listeners; whoever else holds them still does."""
    faulthandler.register(signal.SIGUSR2, file=sys.stderr, all_threads=True)
    anyio.run(_serve, config, listeners)


async def _serve(config: SpecialistConfig, listeners: list[socket.socket]) -> None:
    specialist = Specialist(config, open_backend(config))
    stop = anyio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, _refuse, specialist)

    async with anyio.create_task_group() as house:
        await house.start(specialist.run)
        logger.info("listening on port %d, answers from %s", config.port, specialist.backend.model)
        await Server(specialist).serve(listeners, stop, config.grace)
        house.cancel_scope.cancel()
    await specialist.sessions.close()
    logger.info("stopped in good order")


def _refuse(specialist: Specialist) -> None:
    specialist.draining = True
    logger.info("draining: new requests are refused")
