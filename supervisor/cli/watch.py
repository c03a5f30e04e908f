"""`chorus status --watch`: drawn anew on every change, not on a clock; NDJSON for programs."""

from __future__ import annotations

import sys

import click
import msgspec
from msgspec.structs import replace

from protocol import names as spelling
from protocol.client import ControlConnection
from protocol.control import HOUSE, AnyAnswer, Snapshot, Status, StatusReport, Transition, Watch
from protocol.names import GATEWAY
from supervisor.cli import look
from supervisor.cli.exits import Exit
from supervisor.cli.reach import supervisor
from supervisor.cli.status import advice, for_people, of_some, rendered
from supervisor.config import Loaded

HOME_AND_CLEAR = "\x1b[H\x1b[J"


async def watch_status(loaded: Loaded, names: list[str] | None, as_json: bool) -> int:
    """Shows every change until interrupted or until the supervisor is gone."""
    import anyio

    async with supervisor(loaded) as watching, supervisor(loaded) as asking:
        everybody = [one.name for one in (await _status(asking, None)).specialists]
        named = set(spelling.chosen(names, everybody, [GATEWAY]))
        chosen = named if names is not None else None  # everybody: those too who are added meanwhile
        async for answer in watching.ask(Watch()):
            change = _about(chosen, answer)
            if change is None:
                continue
            if as_json:
                click.echo(msgspec.json.encode(change).decode())
                sys.stdout.flush()
            elif not look.wants_colour(sys.stdout):
                _tell(change, names)
            else:
                _draw(for_people(await _status(asking, names), names))
            await anyio.lowlevel.checkpoint()
    return Exit.DONE


async def _status(asking: ControlConnection, names: list[str] | None) -> StatusReport:
    result = await asking.call(Status(names=names))
    assert result.status is not None
    return result.status


def _about(names: set[str] | None, change: AnyAnswer) -> AnyAnswer | None:
    """What a change says of these specialists, or of all; None where it is about another, or about the supervisor."""
    if isinstance(change, Snapshot) and names is not None:
        return replace(change, status=of_some(change.status, names))
    if isinstance(change, Transition) and (change.name == HOUSE or (names is not None and change.name not in names)):
        return None
    return change


def _tell(change: object, names: list[str] | None) -> None:
    if isinstance(change, Transition):
        click.echo(f"{change.name}: {change.from_} -> {change.to} ({change.cause})")
    elif isinstance(change, Snapshot):
        for line in rendered(for_people(change.status, names)):
            click.echo(line)


def _draw(report: StatusReport) -> None:
    lines = [*rendered(report), *advice(report)]
    sys.stdout.write(HOME_AND_CLEAR + "\n".join(lines) + "\n")
    sys.stdout.flush()
