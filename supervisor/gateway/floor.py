"""Many answers made one text that can be read while it grows: one at a time has the floor, under its name.

Whoever speaks first is passed on as it speaks. What others say meanwhile is kept; then those who have ended are given whole, in
the order of their end, before the next one that still speaks. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

from supervisor.team.events import Entry


class Floor:
    """The text that becomes of it goes to `say` in pieces, each with the name of whose section it is in, "" at the end."""

    def __init__(self, say: Callable[[str, str], None]) -> None:
        self._say = say
        self._speaker: str | None = None
        self._kept: dict[str, list[str]] = {}  # of those who wait, in the order of their first words
        self._ended: list[str] = []  # of those, in the order of their end
        self._heard: set[str] = set()
        self._troubled: list[Entry] = []

    def hear(self, name: str, text: str) -> None:
        """Takes a piece of somebody's answer."""
        self._heard.add(name)
        if self._speaker is None:
            self._begin(name)
        if name == self._speaker:
            self._say(name, text)
        else:
            self._kept.setdefault(name, []).append(text)

    def end(self, entry: Entry) -> None:
        """Somebody has ended."""
        if entry.content and entry.name not in self._heard:
            self.hear(entry.name, entry.content)  # one that does not stream
        if entry.error is not None:
            self._troubled.append(entry)
        if entry.name == self._speaker:
            self._say(entry.name, "\n\n")
            self._pass_on()
        elif entry.name in self._kept:
            self._ended.append(entry.name)

    def close(self) -> None:
        """Everybody has ended: says whose answer is missing, or not whole."""
        if self._troubled:
            self._say("", "## Not answered\n\n")
        for entry in self._troubled:
            error = entry.error.error if entry.error is not None else ""
            self._say("", f"- {entry.name}{' was cut short' if entry.content else ''}: {error}\n")

    def _begin(self, name: str) -> None:
        self._speaker = name
        self._say(name, f"## {name}\n\n")

    def _pass_on(self) -> None:
        self._speaker = None
        for name in self._ended:
            self._say(name, f"## {name}\n\n{''.join(self._kept.pop(name))}\n\n")
        self._ended.clear()
        for name in self._kept:
            self._begin(name)
            self._say(name, "".join(self._kept.pop(name)))
            return
