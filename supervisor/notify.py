"""What a supervisor tells systemd about itself: sd_notify(3), in its own few lines."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

import anyio

logger = logging.getLogger("chorus.supervisor")


class Systemd:
    """The manager's notification socket, if there is one. Saying something to nobody is no error."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET")
        # A leading @ stands for the NUL byte of an abstract socket.
        self._path = "\0" + path[1:] if path and path.startswith("@") else path
        microseconds = environ.get("WATCHDOG_USEC", "")
        self.watchdog = int(microseconds) / 1e6 if microseconds.isdigit() else None

    def say(self, *lines: str) -> None:
        """Sends assignments such as READY=1."""
        if not self._path:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as outgoing:
            outgoing.setblocking(False)  # a manager that does not read must not stop us
            try:
                outgoing.sendto("\n".join(lines).encode(), self._path)
            except OSError as error:
                logger.warning("cannot tell systemd %s: %s", lines[0], error)

    async def keep_alive(self) -> None:
        """Feeds the watchdog at half its interval from this event loop, until cancelled: also on the way down."""
        if self.watchdog is None:
            return
        while True:
            self.say("WATCHDOG=1")
            await anyio.sleep(self.watchdog / 2)
