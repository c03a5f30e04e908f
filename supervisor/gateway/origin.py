"""By which name a request asks for us, and which page it comes from: the headers Host and Origin, read strictly.

Pure. A browser writes both in one way only, and whatever is written otherwise is nobody's name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

from msgspec import Struct

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})  # no name server has a say in these
PORTS = {"http": 80, "https": 443}
REMEMBERED = 64  # texts: nearly all requests have the same few
_HOST = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]"
_AUTHORITY = re.compile(rf"({_HOST})(?::([0-9]{{1,5}}))?")
_ORIGIN = re.compile(rf"([a-z][a-z0-9+.-]*)://({_HOST})(?::([0-9]{{1,5}}))?")
_NUMBERS = re.compile(r"[0-9.]+|0x.*")


class Authority(Struct, frozen=True):
    """What a Host says. An IPv6 address has its brackets, and its shortest spelling."""

    host: str
    port: int | None


class Origin(Struct, frozen=True):
    """Where a page comes from. `port` is 0 where its scheme has none."""

    scheme: str
    host: str
    port: int


@lru_cache(REMEMBERED)
def read_authority(text: str) -> Authority | None:
    """The value of a Host; None for what is none."""
    found = _AUTHORITY.fullmatch(text.lower())
    if found is None:
        return None
    host, port = _host(found[1]), int(found[2]) if found[2] else None
    return Authority(host, port) if host and (port is None or 0 < port <= 65535) else None


@lru_cache(REMEMBERED)
def read_origin(text: str) -> Origin | None:
    """The value of an Origin; None for `null`, and for what is none."""
    found = _ORIGIN.fullmatch(text.lower())
    if found is None:
        return None
    host, port = _host(found[2]), int(found[3]) if found[3] else PORTS.get(found[1], 0)
    return Origin(found[1], host, port) if host and port <= 65535 else None


def is_address(host: str) -> bool:
    """Whether it is an address itself, which nobody can point elsewhere."""
    return host.startswith("[") or _NUMBERS.fullmatch(host) is not None


def of_setting(host: str) -> str:
    """A host as the configuration has it, in the spelling of Authority."""
    return _host(f"[{host}]" if ":" in host and not host.startswith("[") else host.lower()) or host


def origins(texts: Iterable[str]) -> frozenset[Origin]:
    """Those of a list of the configuration; what is none lets nobody in."""
    return frozenset(found for one in texts if (found := read_origin(one)) is not None)


def _host(text: str) -> str | None:
    try:
        if text.startswith("["):
            return f"[{ipaddress.IPv6Address(text[1:-1]).compressed}]"
        if _NUMBERS.fullmatch(text):
            return str(ipaddress.IPv4Address(text))  # not 127.1, nor 2130706433: browsers do not send those
    except ValueError:
        return None
    return text
