"""What the kernel says of a team: which processes there are, who holds which listening socket, how much they have open.

Only /proc is read. What the team says of itself is asked elsewhere; the two have to agree.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from msgspec import Struct

PAGE = os.sysconf("SC_PAGE_SIZE")
LISTEN = "0A"  # the state in /proc/net/tcp


class Seen(Struct, frozen=True):
    """One process: `words` is its command line or title."""

    pid: int
    parent: int
    state: str
    words: str


def processes() -> list[Seen]:
    """Every process of the machine."""
    numbers = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [one for number in numbers if (one := process(number)) is not None]


def process(pid: int) -> Seen | None:
    """One process, zombies too; None when there is none of that number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    state, parent = stat.rpartition(")")[2].split()[:2]
    return Seen(pid, int(parent), state, words)


def is_alive(pid: int) -> bool:
    seen = process(pid)
    return seen is not None and seen.state not in "ZX"


def listeners(ports: set[int]) -> dict[int, dict[str, set[str]]]:
    """The listening sockets of these ports: port -> "tcp" or "tcp6" -> inodes."""
    found: dict[int, dict[str, set[str]]] = {port: {} for port in ports}
    for family in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{family}").read_text().splitlines()[1:]
        except OSError:
            continue  # no IPv6 here
        for line in lines:
            words = line.split()
            port = int(words[1].rpartition(":")[2], 16)
            if words[3] == LISTEN and port in found:
                found[port].setdefault(family, set()).add(words[9])
    return found


def sockets(pid: int) -> set[str]:
    """The inodes of the sockets that a process has open."""
    found = set()
    for descriptor in _descriptors(pid):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except OSError:
            continue  # closed meanwhile
        if match := re.fullmatch(r"socket:\[(\d+)\]", target):
            found.add(match[1])
    return found


def unix_listener(path: Path) -> str | None:
    """The inode of the UNIX socket that listens at a path."""
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        if words[-1] == os.fspath(path) and words[3] == "00010000":  # __SO_ACCEPTCON
            return words[6]
    return None


def descriptors(pid: int) -> int:
    """How many descriptors a process has open; 0 when it is gone."""
    return len(_descriptors(pid))


def resident(pid: int) -> int:
    """Resident bytes; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except OSError:
        return 0


def _descriptors(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []
