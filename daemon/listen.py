"""The listening sockets of one process, one for each place, which is an address and a port: bound here, or handed to us.

What was handed to us is somebody else's too: it is never listened on again and never shut down, only closed.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import MutableMapping, Sequence

from protocol.settings import BACKLOG, Place

FIRST_HANDED = 3  # SD_LISTEN_FDS_START: descriptors that are handed over follow standard error without a hole

# An address family that this machine does not have is no reason not to listen on the other.
NOT_HERE = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class CannotBind(OSError):
    """A place cannot be had; `port` is the one that it was about."""

    def __init__(self, error: OSError, port: int) -> None:
        super().__init__(error.errno, error.strerror)
        self.port = port


def bind(places: Sequence[Place]) -> list[socket.socket]:
    """Binds and listens; the caller closes. Raises CannotBind when a port is taken, or when none of the places can be had."""
    listeners: list[socket.socket] = []
    missing: CannotBind | None = None
    for place in places:
        try:
            listeners.append(_bind(place))
        except OSError as error:
            missing = CannotBind(error, place[1])
            if error.errno not in NOT_HERE:
                for listener in listeners:
                    listener.close()
                raise missing from error
    if not listeners and missing is not None:
        raise missing
    return listeners


class NotOurs(Exception):
    """A descriptor was handed to us that is not what we listen on; says which, and what it is."""


def inherited(environ: MutableMapping[str, str], places: Sequence[Place]) -> list[socket.socket]:
    """The sockets that whoever started this process hands to it, by sd_listen_fds(3): none where none are meant for us.

    They are taken out of `environ`, so that nobody takes them twice. Raises NotOurs for one that is no listening stream
    socket, or listens elsewhere.
    """
    count, pid = environ.get("LISTEN_FDS", ""), environ.get("LISTEN_PID")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []  # another process's, who left them in the environment
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        environ.pop(name, None)
    return [_checked(fd, places) for fd in range(FIRST_HANDED, FIRST_HANDED + int(count))]


def _checked(fd: int, places: Sequence[Place]) -> socket.socket:
    try:
        listener = socket.socket(fileno=fd)
    except OSError as error:
        raise NotOurs(f"descriptor {fd} is no socket ({os.strerror(error.errno or 0)})") from None
    os.set_inheritable(fd, False)
    if listener.family not in (socket.AF_INET, socket.AF_INET6) or listener.type != socket.SOCK_STREAM:
        raise NotOurs(f"descriptor {fd} is a socket, but not of TCP")
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise NotOurs(f"descriptor {fd} is a socket that does not listen")
    place = listener.getsockname()[:2]
    if place not in places:
        meant = " or ".join(f"{host} port {port}" for host, port in places)
        raise NotOurs(f"descriptor {fd} listens on {place[0]} port {place[1]}, not on {meant}")
    return listener


def _bind(place: Place) -> socket.socket:
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it a port is refused while old connections of it are in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(place)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
