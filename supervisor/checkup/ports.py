"""Ports: whether they are free or ours, by whom they are held, and whether the kernel may give them away."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from protocol.settings import ChildConfig
from supervisor.checkup.check import Check, fail, ok, warn
from supervisor.fleet import calls
from supervisor.fleet.owner import describe, owner_of

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")


class Claim(Struct, frozen=True):
    """A port that somebody of the team is to have."""

    name: str
    port: int
    addresses: list[str]
    setting: str


def claims(configs: Iterable[ChildConfig]) -> list[Claim]:
    """One for each port of each of them."""
    found = []
    for config in configs:
        for port in calls.ports(config.places):
            addresses = [address for address, its in config.places if its == port]
            found.append(Claim(config.name, port, addresses, config.setting_of(port)))
    return found


def ports(wanted: list[Claim], ours: Collection[int], answering: Collection[str]) -> Iterator[Check]:
    """One line for all that is well, one for each port that somebody else has.

    `ours` are pids of the team, `answering` the specialists that have just answered on their port. Blocks: run it in a thread.
    """
    held, free = [], []
    for claim in wanted:
        if claim.name in answering:
            held.append(claim.port)
        elif _is_free(claim):
            free.append(claim.port)
        elif (owner := owner_of(claim.port)) is not None and owner.listening and owner.pid in ours:
            held.append(claim.port)
        else:
            fact, remedy = describe(claim.port, claim.setting)
            yield fail(f"port.{claim.name}", f"{fact}, and {claim.name} needs it", remedy)
    if held:
        yield ok("ports.held", f"held by the team: {spans(held)}")
    if free:
        yield ok("ports.free", f"free: {spans(free)}")


def ephemeral(wanted: Iterable[int], range_: Path = RANGE, reserved: Path = RESERVED) -> Check | None:
    """Whether an outgoing connection of any program may be given one of our ports. None where the system does not say."""
    try:
        low, high = (int(part) for part in range_.read_text().split())
        kept = parse_spans(reserved.read_text().strip())
    except (OSError, ValueError):
        return None
    inside = {port for port in wanted if low <= port <= high}
    if not inside:
        return ok("ports.ephemeral", f"no port lies in the range of outgoing connections, {low}-{high}")
    if inside <= kept:
        return ok(
            "ports.ephemeral", f"the ports lie in the range of outgoing connections, {low}-{high}, and are reserved"
        )
    open_ = inside - kept
    return warn(
        "ports.ephemeral",
        f"{len(open_)} ports lie in the range of outgoing connections, {low}-{high}: any program may be given one of them",
        f"sudo sysctl -w net.ipv4.ip_local_reserved_ports={spans(kept | inside)}",
    )


def spans(ports_: Iterable[int]) -> str:
    """`45000-45016,45080`: as the kernel writes it."""
    found: list[list[int]] = []
    for port in sorted(set(ports_)):
        if found and found[-1][1] == port - 1:
            found[-1][1] = port
        else:
            found.append([port, port])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def parse_spans(text: str) -> set[int]:
    """The way back. Raises ValueError."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _is_free(claim: Claim) -> bool:
    """Whether it could be bound at this moment, on all its addresses. It is not listened on."""
    for address in claim.addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, claim.port))
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                return False
    return True
