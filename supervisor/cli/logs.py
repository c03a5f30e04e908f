"""`chorus logs`: what the team wrote down, merged by time. Reads files and systemd's journal, so it works whoever is down."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from protocol import names as spelling
from supervisor import records
from supervisor.cli import look, moment
from supervisor.cli.context import settings_of
from supervisor.cli.exits import Exit
from supervisor.config import Loaded
from supervisor.records import OUTPUT, Record, parsed, recent, stamped
from supervisor.tail import Tail

if TYPE_CHECKING:
    from supervisor.cli.journald import Journal

HOUSE = ("supervisor", "gateway", "forkserver")  # processes that are not specialists
LEVEL_COLOURS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}
LOOK_EVERY = 0.2  # seconds between two looks at a file that is followed
USUAL_COUNT = 100
JOURNALS = Path("/run/systemd/journal")  # where journald listens, where there is one

Show = Callable[[Record], str]


class Count(click.ParamType[int | str]):
    """A number of records, or `all`."""

    name = "N|all"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value != "all" and not str(value).isdecimal():
            self.fail(f"{value!r} is neither a number nor all", param, ctx)
        return "all" if value == "all" else int(str(value))


@click.command("logs")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-f", "--follow", is_flag=True, help="Go on showing what is written, also across restarts.")
@click.option("-n", "--lines", "count", type=Count(), help=f"The last N records, or all.  [default: {USUAL_COUNT}]")
@click.option("--since", "since", metavar="T", help="Not older than 5m, 2h, 1d, or 2026-11-20T10:00.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a record: time, level, name, message.")
@click.pass_context
def logs_command(
    ctx: click.Context, names: tuple[str, ...], follow: bool, count: int | str | None, since: str | None, as_json: bool
) -> int:
    """Show what happened: all specialists and the supervisor, or those that are named."""
    loaded = settings_of(ctx)
    chosen = choose(names, loaded)
    earliest = earliest_of(since)
    limit = USUAL_COUNT if count is None and since is None else count if isinstance(count, int) else None
    show = _shower(loaded, chosen, as_json)
    journal = _journal(loaded, chosen)
    folder = journal.log_folder(loaded) if journal else loaded.dirs.logs
    tails = [(name, Tail(folder / f"{name}{end}")) for name in chosen for end in (".log", ".out")]
    try:
        written = [recent(name, tail, limit, earliest, keep_open=follow) for name, tail in tails]
        said = journal.existing(limit, earliest) if journal else []
        found = records.merged([*written, said])
        _tell_where_else(folder, found, journal if not said and "supervisor" in chosen and since is None else None)
        for record in found[max(0, len(found) - limit) :] if limit is not None else found:
            click.echo(show(record))
        if follow:
            sys.stdout.flush()
            if journal:
                journal.follow()
            _follow(tails, journal, show)
    finally:
        if journal:
            journal.close()
        for _, tail in tails:
            tail.close()
    return Exit.DONE


def choose(asked: Sequence[str], loaded: Loaded) -> list[str]:
    """Whose logs: everybody's, or those of the names, aliases and globs. Raises NotFound for a stranger."""
    roster = loaded.settings.roster
    if not asked or list(asked) == ["all"]:
        return [*roster, *HOUSE]
    written = sorted({path.name.split(".")[0] for path in loaded.dirs.logs.glob("*.*")})
    return spelling.chosen(asked, list(dict.fromkeys([*roster, *HOUSE, *written])))


def _follow(tails: list[tuple[str, Tail]], journal: Journal | None, show: Show) -> None:
    """Shows what comes, until interrupted or until nobody reads any more."""
    while True:
        until_next_look()
        news = [
            record
            for name, tail in tails
            for lines, changed_at in tail.news()
            for record in parsed(name, tail.path, lines, changed_at)
        ]
        news += journal.news() if journal else []
        for record in sorted(news, key=lambda one: one.at):
            click.echo(show(record))
        sys.stdout.flush()


def until_next_look() -> None:
    """Until the next look; raises BrokenPipeError when the reader of our output is gone, which no write would show."""
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)
    if any(event & (select.POLLERR | select.POLLHUP) for _, event in watched.poll(LOOK_EVERY * 1000)):
        raise BrokenPipeError


def as_text(record: Record, room: int, colour: str | int | None = None, *, painted: bool) -> str:
    """`name | time LEVEL message`; every further line of the message has the name too. `room` is the widest name's."""
    message = look.harmless(record.message) if painted else record.message
    prefix = f"{record.name:<{room}} |"
    stamp, level = stamped(record.at), record.level
    if painted:
        prefix = click.style(prefix, fg=colour)
        stamp = click.style(stamp, dim=True)
        level = click.style(level, fg=LEVEL_COLOURS.get(level), dim=level not in LEVEL_COLOURS or None)
    first, *rest = message.rstrip("\n").split("\n")
    head = f"{prefix} {stamp}" if record.level == OUTPUT else f"{prefix} {stamp} {level}"
    return "\n".join([f"{head} {first}", *(f"{prefix}   {line}" for line in rest)])


def _shower(loaded: Loaded, chosen: list[str], as_json: bool) -> Show:
    if as_json:
        return records.as_json
    painted = look.wants_colour(sys.stdout)
    room = max(len(name) for name in chosen)
    colours: dict[str, str | int] = {name: look.name_colour(at) for at, name in enumerate(loaded.settings.roster)}
    if not painted and sys.stdout.isatty():
        return lambda record: look.harmless(as_text(record, room, painted=False))
    return lambda record: as_text(record, room, colours.get(record.name, "bright_black"), painted=painted)


def earliest_of(since: str | None) -> float:
    if since is None:
        return 0.0
    try:
        return moment.since(since, datetime.now())
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{since!r} is no time: 5m, 2h, 1d or 2026-11-20T10:00", param_hint="--since"
        ) from None


def _journal(loaded: Loaded, chosen: list[str]) -> Journal | None:
    """The journal, where the supervisor is a unit that writes there."""
    if not JOURNALS.is_dir():
        return None
    from supervisor.cli.journald import Journal, unit_of

    unit = unit_of(loaded)
    return Journal(unit, chosen) if unit else None


def _tell_where_else(folder: Path, found: list[Record], silent: Journal | None) -> None:
    """Where the rest is, for people: in a journal that may not be read here; or nothing was written at all."""
    if silent:
        click.echo(f"nothing can be read in the journal, where the supervisor writes  do: {silent.unit.line}", err=True)
    elif not found and not folder.is_dir():
        click.echo(f"nothing was logged yet in {folder}  do: chorus up", err=True)
