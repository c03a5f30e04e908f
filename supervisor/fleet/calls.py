"""What the supervisor and the fork server say to each other: one JSON object a line on a UNIX socket.

Every call is answered by one `Answered` with its number. `Exited` comes by itself. The first line of a connection is
`Living`: what runs, what is held, and who ended without a supervisor having said that it has noted it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from protocol.settings import ChildConfig, Place

FORK_SERVER = "chorus: fork server"  # its title; see `title` for those of its children
SPARE = "chorus: spare"  # how the title of one begins that is no specialist yet
MOST_SOCKETS = 32  # that come with one call or answer
CANNOT_EXECUTE = 126  # the exit code of a child that could not become what it was to be; why is what it said last


class Process(Struct, frozen=True, kw_only=True):
    """A process that lives; `started` is a Unix time. `stopping` when it was sent TERM, `draining` when USR1.

    `ticks` and `boot` tell it from a later process of the same number: when it began, in ticks since which boot.
    `places` are where it listens, `fingerprint` is that of the configuration it was started with, `grace` what it gives itself
    when it is asked to end.
    """

    name: str
    pid: int
    started: float
    ticks: int | None = None
    boot: str = ""
    places: list[Place] = []
    draining: bool = False
    stopping: bool = False
    fingerprint: str = ""
    grace: float = 0.0


class Call(Struct, frozen=True, tag_field="call", kw_only=True):
    number: int


class Release(Call, frozen=True, tag="release", kw_only=True):
    """Close the listeners of a name."""

    name: str


class Lend(Call, frozen=True, tag="lend", kw_only=True):
    """Send copies of a name's listeners along with the answer."""

    name: str


class Fork(Call, frozen=True, tag="fork", kw_only=True):
    """Start a process. Its places are bound where they are not held yet; other places of the name are let go.

    Copies of the listeners come with the answer when they are not what they were, and when the caller says that it has none.
    """

    config: ChildConfig
    has_copies: bool = False


class Hold(Call, frozen=True, tag="hold", kw_only=True):
    """Hold the listeners that come with this call, which are bound to these places: those of a fork server that is gone."""

    name: str
    places: list[Place]


class Adopt(Call, frozen=True, tag="adopt", kw_only=True):
    """Take on a process that a fork server which is gone has left."""

    process: Process


class Signal(Call, frozen=True, tag="signal", kw_only=True):
    """Signal a process that was forked here and has not been reaped: no other process can be hit."""

    pid: int
    signal: int
    group: bool = False


class Noted(Call, frozen=True, tag="noted", kw_only=True):
    """The end of a process is on record: nobody else needs to be told of it."""

    pid: int


class Policy(Call, frozen=True, tag="policy", kw_only=True):
    """What to do when the supervisor goes away without `quit`: keep everything, or stop everything."""

    stop_without_supervisor: bool


class Ping(Call, frozen=True, tag="ping", kw_only=True):
    """Nothing but an answer."""


class Quit(Call, frozen=True, tag="quit", kw_only=True):
    """End what still runs, by force, and exit."""


AnyCall = Release | Lend | Fork | Hold | Adopt | Signal | Noted | Policy | Ping | Quit


class Answered(Struct, frozen=True, tag_field="report", tag="answered", kw_only=True, omit_defaults=True):
    """The answer to a call. `error` with its errno where it failed, and the port that it is about, where it is about one.

    `listeners` is how many sockets come with it.
    """

    number: int
    pid: int | None = None
    errno: int | None = None
    error: str | None = None
    port: int | None = None
    listeners: int = 0


class Exited(Struct, frozen=True, tag_field="report", tag="exited", kw_only=True):
    """A process ended: with an exit code, or by a signal; `asked` when it had been sent TERM. `at` is a Unix time.

    Neither code nor signal for one that was adopted: only its parent, whoever that is, learns how it ended.
    """

    name: str
    pid: int
    code: int | None
    signal: int | None
    at: float
    asked: bool = False


class Living(Struct, frozen=True, tag_field="report", tag="living", kw_only=True):
    pid: int
    processes: list[Process]
    held: list[str]
    exits: list[Exited]


AnyReport = Answered | Exited | Living

decode_call = msgspec.json.Decoder(AnyCall).decode
decode_report = msgspec.json.Decoder(AnyReport).decode


def fingerprint(config: ChildConfig) -> str:
    """Tells two configurations apart: a process of another one is replaced. Grace is held to from outside."""
    told = msgspec.structs.replace(config, grace=0.0)
    return hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()[:16]


def title(name: str, *ports: int) -> str:
    """What ps shows of a process, and nobody else has: a survivor is known by it."""
    return f"chorus: {name} [{' '.join(map(str, ports))}]"


def ports(places: Iterable[Place]) -> list[int]:
    """Each port of these places, once."""
    return list(dict.fromkeys(port for _, port in places))


def line(message: Struct) -> bytes:
    return msgspec.json.encode(message) + b"\n"
