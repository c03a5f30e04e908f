"""The listening sockets of one specialist: one for each address, all with the same port."""

from __future__ import annotations

import errno
import socket

BACKLOG = 1024  # clients wait here while a process is replaced; the kernel caps it at net.core.somaxconn

# An address family that this machine does not have is no reason not to listen on the other.
NOT_HERE = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def bind(addresses: list[str], port: int) -> list[socket.socket]:
    """Binds and listens; the caller closes. Raises OSError when a port is taken, or when no address can be had."""
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for address in addresses:
            try:
                listeners.append(_bind(address, port))
            except OSError as error:
                if error.errno not in NOT_HERE:
                    raise
                missing = error
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    if not listeners and missing is not None:
        raise missing
    return listeners


def _bind(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it a port is refused while old connections of it are in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
