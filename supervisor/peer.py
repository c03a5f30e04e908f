"""Who is at the other end of the control socket, and whether they may control the team. Linux says; elsewhere the mode does."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

SO_PEERGROUPS = 59  # asm-generic/socket.h: the groups besides the first, as gid_t each
MOST_GROUPS = 256  # what Python's getsockopt has room for; a peer with more counts as having none


def may_control(peer: socket.socket, group: int | None) -> bool:
    """Our own user, root, and members of the group. The socket's mode says the same; this holds where it was changed."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    _pid, uid, gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid in (0, os.getuid()):
        return True
    return group is not None and (gid == group or group in _groups(peer))


def open_to(group: int, path: Path) -> None:
    """Lets members of a group connect to a socket of ours, and nobody else."""
    if path.stat().st_gid != group:  # a unit's own group has it already, and a sandbox may forbid any chown
        os.chown(path, -1, group)
    path.chmod(0o660)


def _groups(peer: socket.socket) -> list[int]:
    try:
        raw = peer.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MOST_GROUPS)
    except OSError:
        return []
    return [number for (number,) in struct.iter_unpack("I", raw)]
