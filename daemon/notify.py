"""What a process tells systemd about itself: sd_notify(3) and sd_watchdog_enabled(3), in their own few lines.

The watchdog is fed by the event loop itself, and only when the loop has just turned in time: a timer that comes, but late, is
no proof that anybody is served.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import anyio

logger = logging.getLogger("chorus.systemd")

IN_TIME = 1 / 8  # of the watchdog's interval: a turn of the loop that is later than this is not reported as life


async def _at_nothing() -> None:
    """For those who are well when their loop turns."""


class Systemd:
    """The manager's notification socket, if there is one. Saying something to nobody is no error.

    `watchdog` is the interval in seconds, None where the manager does not watch this process.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET")
        # A leading @ stands for the NUL byte of an abstract socket.
        self._path = "\0" + path[1:] if path and path.startswith("@") else path
        microseconds = environ.get("WATCHDOG_USEC", "")
        is_ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())  # and not inherited
        self.watchdog = int(microseconds) / 1e6 or None if is_ours and microseconds.isdigit() else None
        self._is_ready = False

    def say(self, *lines: str) -> None:
        """Sends assignments such as READY=1."""
        self._is_ready |= "READY=1" in lines
        if not self._path:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as outgoing:
            outgoing.setblocking(False)  # a manager that does not read must not stop us
            try:
                outgoing.sendto("\n".join(lines).encode(), self._path)
            except OSError as error:
                logger.warning("cannot tell systemd %s: %s", lines[0], error)

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Says that the configuration is read again, and at the end of the block that this is done."""
        if not self._is_ready:
            yield  # it will be said in its time
            return
        self.say("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            yield
        finally:
            self.say("READY=1")

    async def keep_alive(self, look: Callable[[], Awaitable[None]] = _at_nothing) -> None:
        """Feeds the watchdog from this event loop, until cancelled: also on the way down.

        At half its interval, later by as long as `look` takes: what is to be well besides, and returns when it is.
        """
        if self.watchdog is None:
            return
        while True:
            await self._turned_in_time(self.watchdog * IN_TIME)
            await look()
            self.say("WATCHDOG=1")
            await anyio.sleep(self.watchdog / 2)

    async def _turned_in_time(self, most: float) -> None:
        """Returns after a wait that was over when it should be: soon after a stall, and never in a loop that crawls."""
        lateness = most
        while lateness >= most:
            due = anyio.current_time() + most / 4
            await anyio.sleep(due - anyio.current_time())
            lateness = anyio.current_time() - due
