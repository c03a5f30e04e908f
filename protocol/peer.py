"""Who is at the other end of a loopback connection, asked of the kernel. Linux only; elsewhere it says that it cannot tell.

A client that was killed and a client that half-closed look the same from this side: both sent a FIN. But on loopback the
peer's own socket lives in the same kernel: while a process holds it, it has an inode. sock_diag (linux/inet_diag.h) looks
one socket up by its addresses in about 10 µs; /proc/net/tcp is the slow way where netlink is not allowed.
"""

from __future__ import annotations

import errno
import socket
import struct
from functools import cache
from pathlib import Path

from msgspec import Struct

NETLINK_SOCK_DIAG = 4  # linux/netlink.h
SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
NLM_F_REQUEST = 1
NLMSG_ERROR = 2
ALL_STATES = 0xFFFFFFFF
NO_COOKIE = b"\xff" * 8

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, pid
_REQUEST = struct.Struct("=BBBxI")  # inet_diag_req_v2 before its id: family, protocol, extensions, states
_PORTS = struct.Struct(">HH")
_ANSWER = struct.Struct("=4B48s5I")  # inet_diag_msg: …, id, expires, rqueue, wqueue, uid, inode
_ERROR = struct.Struct("=i")

Address = tuple[str, int]


class Owner(Struct, frozen=True):
    """The user whose process holds the peer's end."""

    uid: int


class Gone(Struct, frozen=True):
    """No process holds the peer's end any more."""


class Untold(Struct, frozen=True):
    """This system does not say."""


def ask(family: int, peer: Address, ours: Address) -> Owner | Gone | Untold:
    """Who holds the socket whose own address is `peer` and whose peer is `ours`, both on this machine."""
    if not hasattr(socket, "AF_NETLINK"):
        return Untold()
    try:
        return _ask_netlink(family, peer, ours)
    except OSError:
        # Sandboxes may forbid AF_NETLINK (RestrictAddressFamilies); /proc tells the same, slower.
        return _ask_proc(family, peer, ours)


def prepare() -> None:
    """Opens what `ask` needs, while there are descriptors: later, out of them, it could not tell who is there.

    Whoever serves calls it before, and `close` when it is done.
    """
    if hasattr(socket, "AF_NETLINK"):
        try:
            _netlink()
        except OSError:
            pass  # forbidden here; /proc may do


def close() -> None:
    """Closes what `prepare` opened. What is open at a fork is shared: siblings would read each other's answers."""
    if _netlink.cache_info().currsize:
        _netlink().close()
        _netlink.cache_clear()


@cache
def _netlink() -> socket.socket:
    """One socket for the life of the process; the kernel answers a look-up before sendto returns."""
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
    link.settimeout(0.5)
    return link


def _ask_netlink(family: int, peer: Address, ours: Address) -> Owner | Gone:
    def packed(address: Address) -> bytes:
        return socket.inet_pton(family, address[0]).ljust(16, b"\0")

    body = (
        _REQUEST.pack(family, socket.IPPROTO_TCP, 0, ALL_STATES)
        + _PORTS.pack(peer[1], ours[1])
        + packed(peer)
        + packed(ours)
        + bytes(4)  # any interface
        + NO_COOKIE
    )
    link = _netlink()
    link.sendto(_HEADER.pack(_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0) + body, (0, 0))
    answer = link.recv(4096)
    kind = _HEADER.unpack_from(answer)[1]
    if kind == NLMSG_ERROR:
        number = -_ERROR.unpack_from(answer, _HEADER.size)[0]
        if number == errno.ENOENT:
            return Gone()
        raise OSError(number, "sock_diag")
    *_, uid, inode = _ANSWER.unpack_from(answer, _HEADER.size)
    return Owner(uid) if inode else Gone()


def _ask_proc(family: int, peer: Address, ours: Address) -> Owner | Gone | Untold:
    def as_proc(address: Address) -> str:
        packed = socket.inet_pton(family, address[0])
        words = (packed[at : at + 4][::-1].hex().upper() for at in range(0, len(packed), 4))  # host byte order: little
        return f"{''.join(words)}:{address[1]:04X}"

    table = Path("/proc/net/tcp6" if family == socket.AF_INET6 else "/proc/net/tcp")
    wanted = [as_proc(peer), as_proc(ours)]
    try:
        with table.open() as lines:
            for line in lines:
                columns = line.split()
                if columns[1:3] == wanted:
                    return Owner(int(columns[7])) if columns[9] != "0" else Gone()
    except OSError:
        return Untold()
    return Gone()
