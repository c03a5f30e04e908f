"""The team side by side, on a screen of its own: a panel for each, with the end of what it has said so far.

The one module that needs rich. What was shown is gone with the screen; `team` prints the answers afterwards.
"""

from __future__ import annotations

import math
import os
import sys
import termios
import tty
from collections.abc import Callable
from typing import Any

import anyio
from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from supervisor.cli import look
from supervisor.cli.views import COLUMN_WIDTH
from supervisor.team.events import AnyEvent, Asked, Entry, Finished, Status, Token

PER_SECOND, PER_SECOND_OVER_SSH = 10, 4
FRAME = 2  # lines and columns that a panel's frame takes


class Member:
    """What the screen knows of one of them."""

    def __init__(self, colour: int) -> None:
        self.colour = colour
        self.text = ""
        self.state = "connecting"
        self.done: Entry | None = None


class Columns:
    """The view. Opened by making it, closed by `close`, which gives the terminal back; both are safe to call once."""

    def __init__(self, colour_of: Callable[[str], int], *, colour: bool, over_ssh: bool) -> None:
        self._colour_of = colour_of
        self._members: dict[str, Member] = {}
        self._began = anyio.current_time()
        self._period = 1 / (PER_SECOND_OVER_SSH if over_ssh else PER_SECOND)
        self._drawn = -math.inf
        console = Console(file=sys.stdout, no_color=not colour, highlight=False)
        self._console = console
        self._live = Live(console=console, screen=True, auto_refresh=False)
        self._live.start()

    def event(self, event: AnyEvent) -> None:
        match event:
            case Asked():
                self._members = {name: Member(self._colour_of(name)) for name in event.specialists}
            case Status():
                self._members[event.name].state = event.phase
            case Token():
                member = self._members[event.name]
                member.state = "answering" if event.content else "thinking"
                member.text += look.harmless(event.content.replace("\r", ""))
            case Entry():
                member = self._members[event.name]
                member.done = event
                member.text = member.text or look.harmless(event.content.replace("\r", ""))
            case Finished():
                pass

    def tick(self, now: float) -> None:
        if self._live.is_started and now - self._drawn >= self._period:
            self._drawn = now
            self._live.update(self._screen(now), refresh=True)

    def close(self) -> None:
        self._live.stop()

    # -- the screen -------------------------------------------------------------------------------------------------------

    def _screen(self, now: float) -> RenderableType:
        width, height = self._console.size
        across = max(1, min(len(self._members), width // COLUMN_WIDTH))
        rows = max(1, math.ceil(len(self._members) / across))
        room = (width // across - 2 * FRAME, max(1, (height - 1) // rows - FRAME))
        members = list(self._members.items())
        grid = Layout()
        lines = [members[at : at + across] for at in range(0, len(members), across)]
        grid.split_column(*(self._row(line, room, now) for line in lines), Layout(self._footer(now), size=1))
        return grid

    def _row(self, members: list[tuple[str, Member]], room: tuple[int, int], now: float) -> Layout:
        row = Layout()
        row.split_row(*(Layout(self._panel(name, member, room, now)) for name, member in members))
        return row

    def _panel(self, name: str, member: Member, room: tuple[int, int], now: float) -> Panel:
        width, height = room
        # Only the end can be seen: wrapping more than fits would cost the more the longer the answer is.
        tail = Text(member.text[-width * height :], style="")
        lines = tail.wrap(self._console, width)[-height:]
        border = "red" if member.done and member.done.error else f"color({member.colour})"
        title = Text.assemble((name, f"bold color({member.colour})"))
        return Panel(Group(*lines), title=title, subtitle=Text(self._state(member, now)), border_style=border)

    def _state(self, member: Member, now: float) -> str:
        entry = member.done
        if entry is None:
            return f"{member.state} {now - self._began:.1f}s"
        parts = [f"{entry.error.code if entry.error else 'done'} {entry.elapsed:.1f}s"]
        if entry.usage:
            parts.append(f"{entry.usage.completion_tokens} tokens")
        if entry.timing and entry.timing.tokens_per_second:
            parts.append(f"{entry.timing.tokens_per_second:.1f} tok/s")
        return ", ".join(parts)

    def _footer(self, now: float) -> Text:
        ended = [member.done for member in self._members.values() if member.done]
        tokens = sum(entry.usage.completion_tokens for entry in ended if entry.usage)
        counted = f", {tokens} tokens" if tokens else ""
        text = f"{len(ended)} of {len(self._members)} done{counted}, {now - self._began:.1f}s   q or Ctrl-C ends it"
        return Text(text, no_wrap=True)


async def watch_keys(on_quit: Callable[[], None]) -> None:
    """Calls `on_quit` when q is typed; gives the terminal its own ways back when it is cancelled."""
    if not sys.stdin.isatty():
        await anyio.sleep_forever()
    before: list[Any] = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        while True:
            await anyio.wait_readable(sys.stdin)
            if (key := os.read(sys.stdin.fileno(), 1)) in (b"q", b"Q"):
                on_quit()
            if not key:
                await anyio.sleep_forever()  # the terminal is gone: SIGHUP says what that means
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
