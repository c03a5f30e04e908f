"""The supervisor's own copies of all listening sockets. Nobody accepts on them: they keep the ports from being closed.

With them the death of the fork server refuses no client, not even one of a specialist that was just being restarted: the next
fork server is given the same sockets.

They also show who waits: a queue of connections belongs to the socket, whoever's copy of it is looked at.
"""

from __future__ import annotations

import socket
import struct

# Of a listening socket, TCP_INFO tells in place of unacknowledged segments how many connections wait to be accepted (tcp_info
# in linux/tcp.h: eight bytes, then figures of four, of which this is the fifth).
_WAITING = struct.Struct("=24xI")


class Copies:
    """Listening sockets by the name of their specialist. Written by the link to the fork server; outlives it."""

    def __init__(self) -> None:
        self._sockets: dict[str, list[socket.socket]] = {}

    @property
    def names(self) -> list[str]:
        return list(self._sockets)

    def of(self, name: str) -> list[socket.socket]:
        """The sockets of one name, which stay ours; empty where there are none."""
        return self._sockets.get(name, [])

    def is_waited_for(self, name: str) -> bool:
        """Whether somebody has connected to a name and has not been accepted. Never, where the system does not say."""
        return hasattr(socket, "TCP_INFO") and any(map(_waiting, self.of(name)))

    def put(self, name: str, sockets: list[socket.socket]) -> None:
        """Takes sockets in the place of those that were there, which are closed unless they are the same."""
        before, self._sockets[name] = self.of(name), sockets
        for one in before:
            if one not in sockets:
                one.close()

    def drop(self, name: str) -> None:
        for one in self._sockets.pop(name, []):
            one.close()

    def close(self) -> None:
        for name in self.names:
            self.drop(name)


def _waiting(listener: socket.socket) -> int:
    return int(_WAITING.unpack(listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _WAITING.size))[0])
