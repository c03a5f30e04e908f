"""The process of one specialist: its event loop, its signals, its end.

TERM and INT end it in good order, and a second one ends the grace of what is under way; USR1 makes it refuse new requests
and stay, or after TERM, wait for the second one however long that takes; USR2 writes every thread's stack to standard error,
which is how a hang is told from outside. So does a crash, and the ABRT of a service manager whose watchdog was not fed.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import resource
import signal
import socket
import sys

import anyio

from daemon.backends.open import open_backend
from daemon.notify import Systemd
from daemon.server import Server
from daemon.specialist import Specialist
from protocol.settings import SpecialistConfig

logger = logging.getLogger("chorus.daemon")

END_MARGIN = 5.0  # seconds a service manager waits longer than our own grace
OWN_DESCRIPTORS = 512  # listeners, the model server's connections, files


def run(config: SpecialistConfig, listeners: list[socket.socket], systemd: Systemd | None = None) -> None:
    """Serves until a signal ends it. Closes the listeners; whoever else holds them still does.

    `systemd` is given where this process is a unit of its own, and only there: it is told how we are.
    """
    faulthandler.enable(sys.stderr, all_threads=True)
    faulthandler.register(signal.SIGUSR2, file=sys.stderr, all_threads=True)
    _make_room(config.limits.connections)
    anyio.run(_serve, config, listeners, systemd or Systemd({}))


async def _serve(config: SpecialistConfig, listeners: list[socket.socket], systemd: Systemd) -> None:
    specialist = Specialist(config, open_backend(config))
    server = Server(specialist)
    stop = anyio.Event()

    def end() -> None:
        if stop.is_set():
            logger.info("told to end twice: what is under way ends now")
            server.end_grace()
        patience = f"EXTEND_TIMEOUT_USEC={int((config.grace + END_MARGIN) * 1e6)}"
        systemd.say("STOPPING=1", "STATUS=what is under way is finished", patience)
        stop.set()

    def refuse() -> None:
        if stop.is_set():
            logger.info("told to wait: what is under way goes on until the next TERM")
            server.be_patient()
            return
        specialist.draining = True
        logger.info("draining: new requests are refused")
        systemd.say("STATUS=draining: new requests are refused")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGUSR1, refuse)

    async with anyio.create_task_group() as house:
        house.start_soon(systemd.keep_alive)
        await house.start(specialist.run)
        how = f"listening on port {config.port}, answers from {specialist.backend.model or specialist.backend.kind}"
        logger.info(how)
        systemd.say("READY=1", f"STATUS={how}")
        await server.serve(listeners, stop, config.grace)
        house.cancel_scope.cancel()
    await specialist.sessions.close()
    logger.info("stopped in good order")


def _make_room(connections: int) -> None:
    """Descriptors for every connection that may be open: most systems start a process with 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OWN_DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
