"""`chorus events`: what became of the team and why, oldest first. Reads files only, so it works whoever is up or down."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator

import click

from protocol import names as spelling
from protocol.codec import encode
from protocol.control import HOUSE, Gap, Transition
from supervisor import records
from supervisor.cli import look
from supervisor.cli.context import surroundings_of
from supervisor.cli.exits import Exit
from supervisor.cli.logs import USUAL_COUNT, Count, earliest_of, until_next_look
from supervisor.config import Loaded
from supervisor.fleet.eventlog import FILE, last_number, read_record
from supervisor.tail import Tail

FROM_ABOVE = 100  # columns of a terminal from which on the state before is shown too
STATE_ROOM = 11  # "backing_off"
AT_ONCE = 0.05  # seconds

Entry = tuple[float, Transition | Gap]  # a gap has the time of the event behind it


@click.command("events")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-f", "--follow", is_flag=True, help="Go on showing what happens, also across supervisors.")
@click.option("-n", "--lines", "count", type=Count(), help=f"The last N events, or all.  [default: {USUAL_COUNT}]")
@click.option("--since", "since", metavar="T", help="Not older than 5m, 2h, 1d, or 2026-11-20T10:00.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an event, as on the control socket.")
@click.pass_context
def events_command(
    ctx: click.Context, names: tuple[str, ...], follow: bool, count: int | str | None, since: str | None, as_json: bool
) -> int:
    """Show every change of state with its cause, oldest first: of everybody, or of those who are named."""
    loaded = surroundings_of(ctx)
    earliest = earliest_of(since)
    limit = USUAL_COUNT if count is None and since is None else count if isinstance(count, int) else None
    tail, order = Tail(loaded.dirs.state / FILE), Order()
    try:
        found = list(recorded(tail, order, is_all=not follow))
        chosen = _chosen(names, loaded, found)
        shown = [entry for at, entry in found if at >= earliest and _is_about(chosen, entry)]
        show = Page(loaded, chosen, as_json=as_json)
        for entry in shown[max(0, len(shown) - limit) :] if limit is not None else shown:
            click.echo(show.line(entry))
        if not found:
            click.echo(f"nothing has happened yet in {loaded.dirs.state}  do: chorus up", err=True)
        while follow:
            sys.stdout.flush()
            until_next_look()
            for lines, _ in tail.news():
                for _, entry in order.put(lines):
                    if _is_about(chosen, entry):
                        click.echo(show.line(entry))
    finally:
        tail.close()
    return Exit.DONE


class Order:
    """Puts what is read into the order of its numbers: what is read twice is told once, what is missing is a gap."""

    def __init__(self) -> None:
        self.last: Transition | None = None

    def put(self, lines: Iterable[bytes]) -> Iterator[Entry]:
        """Lines of the log as entries."""
        for line in lines:
            if (event := read_record(line)) is None:
                continue
            last, self.last = self.last, event
            if last is not None and event.seq <= last.seq and event.at <= last.at:
                self.last = last
                continue
            # A lower number of a later time: somebody emptied the state folder, and counting began anew.
            if last is not None and event.seq > last.seq + 1:
                yield event.at, Gap(missed=event.seq - last.seq - 1)
            yield event.at, event


def recorded(tail: Tail, order: Order, *, is_all: bool) -> Iterator[Entry]:
    """What there is, oldest first; `is_all` when nothing more is read afterwards."""
    files = [lines for lines, _ in tail.existing()]
    lines = [line for file in reversed(files) for line in file] + (tail.rest() if is_all else [])
    yield from order.put(lines)
    if is_all and order.last is not None:
        # Events behind the last record may have been lost as well: then the disk is full still.
        missed = last_number(lines) - order.last.seq
        if missed > 0:
            yield order.last.at, Gap(missed=missed)


class Page:
    """Events as lines, for people or for programs."""

    def __init__(self, loaded: Loaded, names: Collection[str] | None, *, as_json: bool) -> None:
        self._as_json = as_json
        self._painted = look.wants_colour(sys.stdout)
        self._is_terminal = sys.stdout.isatty()
        self._with_from = not self._is_terminal or look.width() >= FROM_ABOVE
        self._room = max(len(name) for name in names or [*loaded.settings.roster, HOUSE])
        self._colours = {name: look.name_colour(at) for at, name in enumerate(loaded.settings.roster)}
        self._day = ""

    def line(self, entry: Transition | Gap) -> str:
        """One event; on a terminal the first one of a day has the day above it."""
        if self._as_json:
            return encode(entry).decode().rstrip("\n")
        if isinstance(entry, Gap):
            return self._paint(f"-- {entry.missed} events are missing: they could not be written --", fg="yellow")
        stamp = records.stamped(entry.at)
        day, above = stamp[:10], ""
        if self._is_terminal:
            if day != self._day:
                self._day = day
                above = self._paint(day, bold=True) + "\n"
            stamp = stamp[11:]
        self._room = max(self._room, len(entry.name))  # of somebody who is new in the team
        name = self._paint(f"{entry.name:<{self._room}}", fg=self._colours.get(entry.name, "bright_black"))
        return f"{above}{self._paint(stamp, dim=True)}  {name}  {self._states(entry)}  {self._cause(entry)}".rstrip()

    def _states(self, event: Transition) -> str:
        to = self._paint(f"{event.to:<{STATE_ROOM}}", fg=look.STATE_COLOURS.get(event.to))
        if not self._with_from:
            return to
        arrow = f"{event.from_:>{STATE_ROOM}} -> " if event.from_ != event.to else " " * (STATE_ROOM + 4)
        return self._paint(arrow, dim=True) + to

    def _cause(self, event: Transition) -> str:
        cause = event.cause.replace("\n", "\\n")
        return (look.harmless(cause) if self._is_terminal else cause) + self._paint(_details(event), dim=True)

    def _paint(self, text: str, fg: str | int | None = None, *, bold: bool = False, dim: bool = False) -> str:
        return click.style(text, fg=fg, bold=bold or None, dim=dim or None) if self._painted else text


def _details(event: Transition) -> str:
    parts = []
    if event.pid and event.old_pid:
        parts.append(f"pid {event.old_pid} -> {event.pid}")
    elif event.pid or event.old_pid:
        parts.append(f"pid {event.pid or event.old_pid}")
    if event.next_due is not None:
        if event.attempt > 1:
            parts.append(f"failure {event.attempt} in a row")
        delay = event.next_due - event.at
        parts.append(f"next try in {delay:.1f} s" if delay > AT_ONCE else "next try at once")
    return f"  ({', '.join(parts)})" if parts else ""


def _chosen(asked: tuple[str, ...], loaded: Loaded, found: list[Entry]) -> list[str] | None:
    """Whose events: None is everybody's, else those of names, aliases and globs. Raises NotFound for a stranger."""
    if not asked or asked == ("all",):
        return None
    met = {entry.name for _, entry in found if isinstance(entry, Transition)}
    known = list(dict.fromkeys([*loaded.settings.roster, HOUSE, *sorted(met)]))
    return spelling.chosen(asked, known)


def _is_about(names: list[str] | None, entry: Transition | Gap) -> bool:
    return names is None or isinstance(entry, Gap) or entry.name in names
