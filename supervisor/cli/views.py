"""How a team chat looks while it happens: lines as they come, whole answers as they end, or one JSON object for each event.

Columns are in `columns.py`. A view is told every event and, ten times a second, that time passed; it never waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import click
import msgspec

from supervisor.cli.stream import Outlet
from supervisor.team.events import AnyEvent, Asked, Entry, Finished, Token

FLUSH_AFTER = 1.5  # seconds after which the beginning of a line is shown: held longer, it looks hung
COLUMN_WIDTH = 38
COLUMN_HEIGHT = 7  # a head, a frame, and enough text to follow
SMALLEST_SCREEN = 12  # lines


class View(Protocol):
    """What shows a team chat."""

    def event(self, event: AnyEvent) -> None: ...
    def tick(self, now: float) -> None: ...
    def close(self) -> None:
        """Nothing more will happen: what is held back is shown."""


class Json:
    """One line for each event. The last one is written by whoever knows what belongs into it."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def event(self, event: AnyEvent) -> None:
        if not isinstance(event, Finished):
            self._outlet.put(as_line(event))

    def tick(self, now: float) -> None:
        pass

    def close(self) -> None:
        pass


class Blocks:
    """Each answer whole, when it is complete."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._is_first = True

    def event(self, event: AnyEvent) -> None:
        if isinstance(event, Entry):
            self._outlet.put(("" if self._is_first else "\n") + block(event))
            self._is_first = False

    def tick(self, now: float) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """`apollo      | text`: whole lines in the order of their end, each with its author."""

    def __init__(self, outlet: Outlet, colour_of: Callable[[str], int] | None) -> None:
        self._outlet = outlet
        self._colour_of = colour_of  # None: no colour
        self._prefixes: dict[str, str] = {}
        self._held: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._now = 0.0

    def event(self, event: AnyEvent) -> None:
        match event:
            case Asked():
                room = max((len(name) for name in event.specialists), default=0)
                self._prefixes = {name: self._prefix(name, room) for name in event.specialists}
            case Token() if event.content:
                *whole, rest = (self._held.get(event.name, "") + event.content).split("\n")
                for line in whole:
                    self._show(event.name, line)
                if whole or event.name not in self._held:
                    self._since[event.name] = self._now
                self._held[event.name] = rest
            case Entry():
                self._flush(event.name)
            case _:
                pass

    def tick(self, now: float) -> None:
        self._now = now
        for name, text in self._held.items():
            if text and now - self._since[name] >= FLUSH_AFTER:
                whole, space, rest = text.rpartition(" ")
                if space:
                    self._show(name, whole)
                    self._held[name] = rest
                self._since[name] = now

    def close(self) -> None:
        for name in list(self._held):
            self._flush(name)

    def _flush(self, name: str) -> None:
        if text := self._held.pop(name, ""):
            self._show(name, text)

    def _show(self, name: str, line: str) -> None:
        self._outlet.put(self._prefixes.get(name, name), is_ours=True)
        self._outlet.put(f" | {line}\n")

    def _prefix(self, name: str, room: int) -> str:
        padded = name.ljust(room)
        return click.style(padded, fg=self._colour_of(name)) if self._colour_of else padded


def block(entry: Entry) -> str:
    """`== apollo (3.2s, 210 tokens) ==` and the answer; for one that failed, what had come and why no more did."""
    counted = f", {entry.usage.completion_tokens} tokens" if entry.usage else ""
    failed = f", {entry.error.code}" if entry.error else ""
    text = entry.content.rstrip("\n")
    if entry.error:
        text = "\n".join(part for part in (text, f"[{entry.error.error}]") if part)
    return f"== {entry.name} ({entry.elapsed:.1f}s{counted}{failed}) ==\n{text}\n"


def as_line(event: AnyEvent) -> str:
    return msgspec.json.encode(event).decode() + "\n"


def summary(finished: Finished) -> str:
    """`4 of 5 answered in 12.4s, 933 tokens; prometheus failed: backend_down`."""
    failed = [*finished.timed_out, *finished.failed]
    everybody = len(finished.responses) + len(failed)
    counts = [entry.usage.completion_tokens for entry in finished.responses if entry.usage]
    counted = f", {sum(counts)} tokens" if counts else ""
    parts = [f"{len(finished.responses)} of {everybody} answered in {finished.elapsed_time:.1f}s{counted}"]
    parts += [f"{entry.name} failed: {entry.error.code if entry.error else 'unknown'}" for entry in failed]
    return "; ".join(parts)


def columns_fit(count: int, width: int, height: int) -> bool:
    """Whether so many answers can be read side by side, in as many rows as that takes."""
    across = min(count, width // COLUMN_WIDTH)
    if across == 0 or height < SMALLEST_SCREEN:
        return False
    return (height - 1) // math.ceil(count / across) >= COLUMN_HEIGHT
