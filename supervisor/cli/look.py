"""How things look on a terminal: colour where it is wanted, tables that fit, times and sizes that people read."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

import click

from supervisor.cli.context import invocation

# One colour for each state; the word is always there too, so nothing is said by colour alone.
STATE_COLOURS = {
    "ready": "green",
    "degraded": "yellow",
    "starting": "cyan",
    "draining": "cyan",
    "stopping": "cyan",
    "backing_off": "yellow",
    "hung": "red",
    "failed": "red",
    "stopped": "bright_black",
}

# Okabe and Ito's palette, which people with any colour vision can tell apart, as the nearest of xterm's 256 colours.
NAME_COLOURS = (214, 74, 36, 227, 32, 166, 175, 250)


def wants_colour(stream: TextIO, ctx: click.Context | None = None) -> bool:
    """Whether escape bytes may go to this stream: a terminal that can, and nobody who said no (no-color.org)."""
    call = invocation(ctx or click.get_current_context())
    if call.color != "auto":
        return call.color == "always"
    environ = call.environ
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and environ.get("TERM") != "dumb"


def paint(text: str, colour: str | int | None, stream: TextIO, *, bold: bool = False) -> str:
    """The text in a colour, where the stream may have one."""
    if not wants_colour(stream):
        return text
    return click.style(text, fg=colour, bold=bold or None)


def name_colour(position: int) -> int:
    """The colour of a specialist, by its place in the roster: the same in every command."""
    return NAME_COLOURS[position % len(NAME_COLOURS)]


def width(stream: TextIO = sys.stdout) -> int:
    """Columns of the terminal, or a wide page where there is none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 200


def table(header: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[str]:
    """Left-aligned columns two spaces apart; columns are dropped from the right until a line fits, never wrapped.

    The last column that stays is cut with … where it alone is too long.
    """
    columns = len(header)
    widths = [max(len(row[at]) for row in [header, *rows]) for at in range(columns)]
    while columns > 2 and sum(widths[: columns - 1]) + 2 * (columns - 1) + min(widths[columns - 1], 12) > room:
        columns -= 1

    def line(row: Sequence[str]) -> str:
        text = "  ".join(row[at].ljust(widths[at]) for at in range(columns)).rstrip()
        return text if len(text) <= room else text[: room - 1] + "…"

    return [line(row) for row in [header, *rows]]


def duration(seconds: float | None) -> str:
    """`3d4h`, `2h05m`, `1m20s`, `12s`."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole >= 86400:
        return f"{whole // 86400}d{whole % 86400 // 3600}h"
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole}s"


def size(count: int | None) -> str:
    """Bytes as people read them."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit has no limit")


def harmless(text: str) -> str:
    """Text of others for a terminal: control bytes become U+FFFD, newline and tab stay."""
    return text.translate(_CONTROLS)


_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}
