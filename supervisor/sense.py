"""Whether the whole configuration can work: what fits the schema may contradict itself, or this machine.

Pure, but for the lists of the machine's users and groups.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator

from protocol import names
from protocol.settings import LOAD_TIME_OPTIONS, Settings
from supervisor.checks import Leaves, bad_name, shown
from supervisor.locate import Key

# Nearer than protocol.names.near: there a suggestion is offered, here a name is refused.
NEAR_MISS = 0.8
# A browser writes both in small letters, and a name is no pattern.
HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:]+\]")
ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://({HOST.pattern})(:\d{{1,5}})?")
Finding = tuple[Key, str]


def findings(settings: Settings, said: Leaves) -> Iterator[Finding]:
    """What fits the schema and cannot work: each mistake with the key that is to be changed.

    `settings` still has the spellings of its sources.
    """
    yield from _host(settings)
    yield from _gateway(settings)
    yield from _roster(settings)
    yield from _mentioned(settings)
    yield from _ports(settings, said)
    yield from _options(settings)
    yield from _users(settings)
    if settings.supervision.hung_after <= settings.supervision.health_period:
        yield (
            ("supervision", "hung_after"),
            "expected more than supervision.health_period, or all will seem hung",
        )
    for key, url in (
        (("backend", "url"), settings.backend.url),
        (("gateway", "engram_url"), settings.gateway.engram_url),
    ):
        if url is not None and (problem := bad_url(url)):
            yield key, problem


def is_address(host: str) -> bool:
    """Whether one can listen there as it is written: a name may be any address, and another one tomorrow."""
    import ipaddress

    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bad_url(url: str) -> str | None:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    return None if fits else f"expected a URL such as http://127.0.0.1:11434, got {shown(url)}"


def _host(settings: Settings) -> Iterator[Finding]:
    if not is_loopback(settings.host):
        what = f"expected 127.0.0.1, ::1 or localhost, got {shown(settings.host)}"
        yield ("host",), f"{what} - specialists answer this machine only; gateway.host may be any address"


def _gateway(settings: Settings) -> Iterator[Finding]:
    gateway = settings.gateway
    if not is_address(gateway.host):
        yield (
            ("gateway", "host"),
            f"expected an address such as 127.0.0.1 or 0.0.0.0, or localhost, got {shown(gateway.host)}",
        )
    for index, origin in enumerate(gateway.allowed_origins):
        if not ORIGIN.fullmatch(origin):
            what = f"expected an origin such as https://example.org, or with its port, got {shown(origin)}"
            yield ("gateway", "allowed_origins", str(index)), what
    for index, host in enumerate(gateway.allowed_hosts):
        if not HOST.fullmatch(host):
            what = f"expected a name such as box.example.org, without scheme and port, got {shown(host)}"
            yield ("gateway", "allowed_hosts", str(index)), what


def _near(name: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, [*known, *names.ALIASES], n=1, cutoff=NEAR_MISS)
    return close[0] if close else None


def _roster(settings: Settings) -> Iterator[Finding]:
    met: dict[str, str] = {}
    for index, spelled in enumerate(settings.roster):
        key, name = ("roster", str(index)), names.canonical(spelled)
        known = name in names.OFFSETS or name in settings.specialists
        if problem := bad_name(spelled, name, met):
            yield key, problem
        elif not known and (near := _near(name, names.ROSTER)):
            new = f"(a new one needs a table [specialists.{name}])"
            yield key, f'no specialist "{spelled}" - did you mean "{near}"? {new}'
        met[name] = spelled
    if not settings.roster:
        yield ("roster",), "expected at least one name, got []"


def _mentioned(settings: Settings) -> Iterator[Finding]:
    """Names that stand elsewhere than in the roster."""
    roster = {names.canonical(one) for one in settings.roster}
    for name in settings.specialists:
        if name not in names.OFFSETS and name not in roster and (near := _near(name, [*names.ROSTER, *roster])):
            yield ("specialists", name), f'no specialist of that name - did you mean "{near}"?'
    known = {*names.ROSTER, *roster, *settings.specialists}
    for role, spelled in settings.roles.items():
        if names.canonical(spelled) not in known:
            near = _near(names.canonical(spelled), known)
            meant = f'did you mean "{near}"?' if near else "it is not in the roster"
            yield ("roles", role), f'no specialist "{spelled}" - {meant}'


def _claims(settings: Settings) -> Iterator[tuple[int, str, Key]]:
    """Every port that is asked for: whose it is, and the key that would change it."""
    for name in dict.fromkeys(names.canonical(one) for one in settings.roster):
        own = settings.specialists.get(name)
        if own and own.port:
            yield own.port, name, ("specialists", name, "port")
        elif name in names.OFFSETS:
            yield settings.port_base + names.OFFSETS[name], name, ("port_base",)
    if settings.gateway.enabled:
        yield settings.gateway.port, "the gateway", ("gateway", "port")
        for index, port in enumerate(settings.gateway.also_ports):
            yield port, "the gateway", ("gateway", "also_ports", str(index))


def _ports(settings: Settings, said: Leaves) -> Iterator[Finding]:
    held: dict[int, tuple[str, Key]] = {}
    for port, owner, key in _claims(settings):
        if port not in held:
            held[port] = (owner, key)
            continue
        other, other_key = held[port]
        if _weight(key, said) >= _weight(other_key, said):
            yield key, f"expected a port of its own, got {port}, which is {other}'s"
        else:
            yield other_key, f"expected a port of its own, got {port}, which is {owner}'s"


def _weight(key: Key, said: Leaves) -> int:
    """How much a port is meant: 2 where it was given for itself, 1 where port_base was, 0 for a default."""
    if key not in said and key[:-1] not in said:
        return 0
    return 1 if key == ("port_base",) else 2


def _options(settings: Settings) -> Iterator[Finding]:
    for name, own in settings.specialists.items():
        for option in own.options:
            if option in LOAD_TIME_OPTIONS:
                what = "belongs to [backend.options]: the model would be loaded anew for each specialist"
                yield ("specialists", name, "options", option), what


def _users(settings: Settings) -> Iterator[Finding]:
    for index, user in enumerate(settings.allow_users):
        if uid(user) is None:
            yield ("allow_users", str(index)), f"expected a user of this machine, got {shown(user)}"


def uid(user: str) -> int | None:
    """The number of a user of this machine, who may also be given by number."""
    import pwd

    if user.isascii() and user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):  # ValueError: a zero byte
        return None


def gid(group: str) -> int | None:
    """The number of a group of this machine, which may also be given by number."""
    import grp

    if group.isascii() and group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        return None


def members(number: int) -> list[int]:
    """The users of a group: those that it lists, and those whose first group it is."""
    import grp
    import pwd

    try:
        listed = grp.getgrgid(number).gr_mem
    except KeyError:
        listed = []
    first = [user.pw_uid for user in pwd.getpwall() if user.pw_gid == number]
    return sorted({*first, *(found for name in listed if (found := uid(name)) is not None)})
