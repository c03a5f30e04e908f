"""Free ports for tests, from a block that no other process with tests uses at the same time.

Below the ports that the kernel gives to clients (from 32768 on with Linux, 49152 with macOS): there, a port that was free
when it was looked at may be a client's when it is listened on.
"""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Iterator, Sequence
from errno import EADDRINUSE
from functools import cache

from protocol import names

FIRST, LAST, SIZE = 10_000, 32_000, 1_000  # of the blocks
BASES = (100, 300, 500, 700)  # in a block; what is before them is handed out one by one
GATEWAY_OFFSET = 90  # where the gateway of a test's team listens, from its port_base on
FOR_NAMES = 100  # and names that are not in the table of ports


def free_port() -> int:
    """A port on which nobody listens. One that was just given back comes last."""
    return next(port for port in itertools.islice(_single_ports(), BASES[0] - 1) if _is_free(port))


def free_port_base(roster: Sequence[str] | None = None) -> int:
    """A port_base with which the ports of a roster and of its gateway are all free."""
    team = [names.canonical(name) for name in roster or names.ROSTER]
    wanted = [names.OFFSETS[name] for name in team if name in names.OFFSETS]
    wanted += [GATEWAY_OFFSET, *range(FOR_NAMES, FOR_NAMES + len(team) - len(wanted))]
    some = itertools.islice(_bases(), len(BASES))
    return next(base for base in some if all(_is_free(base + offset) for offset in wanted))


@cache
def _block() -> int:
    """The first port of this process's block. It stays bound as long as the process lives: so others see that it is taken."""
    firsts = list(range(FIRST, LAST, SIZE))
    random.shuffle(firsts)
    for first in firsts:
        mark = socket.socket()
        try:
            mark.bind(("127.0.0.1", first))
        except OSError:
            mark.close()
        else:
            mark.detach()  # not closed with the object
            return first
    raise AssertionError(f"{len(firsts)} other processes with tests have all ports from {FIRST} to {LAST}")


@cache
def _single_ports() -> Iterator[int]:
    return itertools.cycle(range(_block() + 1, _block() + BASES[0]))


@cache
def _bases() -> Iterator[int]:
    return itertools.cycle([_block() + base for base in BASES])


def _is_free(port: int) -> bool:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind((host, port))
        except OSError as error:
            if family == socket.AF_INET or error.errno == EADDRINUSE:  # a machine may have no IPv6
                return False
    return True
