"""A terminal taken over: the alternate screen, no cursor, keys as they are typed; and given back as it was.

What is drawn are whole frames; only the lines that changed are written, in one write, so nothing flickers.
"""

from __future__ import annotations

import os
import re
import termios
import tty
from typing import Any, TextIO

import click

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[H\x1b[2J"  # alternate screen, no cursor, no wrapping at the edge
# Emptied first: after a resize tmux takes what is left there into the lines above.
LEAVE = "\x1b[0m\x1b[H\x1b[2J\x1b[?7h\x1b[?25h\x1b[?1049l"
# Terminals that know synchronized updates show what is between at once; the others ignore both.
BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"

_KEY = re.compile(rb"\x1b[\[O][0-9;]*[A-Za-z~]|[^\x1b]|\x1b")
_NAMES = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1b[H": "home",
    b"\x1b[1~": "home",
    b"\x1b[F": "end",
    b"\x1b[4~": "end",
    b"\x0c": "redraw",
}


class Screen:
    """The terminal behind two streams. `open` and `close` may be called again and again; without `open` nothing is drawn."""

    def __init__(self, shown: TextIO, typed: TextIO) -> None:
        self._out = shown.fileno()
        self._in = typed.fileno() if typed.isatty() else None
        self._encoding = shown.encoding
        self._is_open = False
        self._lines: list[str] | None = None
        self._size = (0, 0)
        self._before: list[Any] = []

    @property
    def keyboard(self) -> int | None:
        """The descriptor that keys come from; None where nobody types."""
        return self._in

    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        columns, lines = os.get_terminal_size(self._out)
        return columns, lines

    def open(self) -> None:
        if self._in is not None:
            self._before = termios.tcgetattr(self._in)
            tty.setcbreak(self._in)  # Ctrl-C and Ctrl-Z stay what they are
        self._is_open = True
        self._lines = None
        self._write(ENTER)

    def close(self) -> None:
        """Gives the terminal back. One that is gone by now needs nothing."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._write(LEAVE)
            if self._in is not None:
                termios.tcsetattr(self._in, termios.TCSADRAIN, self._before)
        except (OSError, termios.error):
            pass

    def forget(self) -> None:
        """Has everything drawn anew: something else has written on the terminal."""
        self._lines = None

    def draw(self, lines: list[str]) -> None:
        """Shows these lines, the first at the top; none may be wider than the screen."""
        if not self._is_open:
            return
        size = self.size()
        clear = ""
        if self._lines is None or size != self._size:
            clear = "\x1b[0m\x1b[2J"
            self._lines = []
        columns, rows = self._size = size
        old = [*self._lines, *[""] * rows]
        self._lines = [*lines, *[""] * rows][:rows]
        changed = [_put(at, line, columns) for at, line in enumerate(self._lines) if line != old[at]]
        if clear or changed:
            self._write(BEGIN + clear + "".join(changed) + END)

    def _write(self, text: str) -> None:
        data = memoryview(text.encode(self._encoding, "replace"))
        while data:
            data = data[os.write(self._out, data) :]


def _put(row: int, line: str, columns: int) -> str:
    # Behind a full line the cursor stands on the last column still, and clearing would take what is there.
    clear = "\x1b[K" if len(click.unstyle(line)) < columns else ""
    return f"\x1b[{row + 1};1H{line}\x1b[0m{clear}"


def keys(data: bytes) -> list[str]:
    """What was typed: letters as they are, the others by name; keys of no name are left out."""
    found = []
    for typed in _KEY.findall(data):
        key = typed.replace(b"\x1bO", b"\x1b[")  # as terminals in application mode say it
        if key in _NAMES:
            found.append(_NAMES[key])
        elif len(key) == 1 and key.isascii() and key != b"\x1b" and key.decode().isprintable():
            found.append(key.decode())
    return found
