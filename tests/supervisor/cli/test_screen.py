"""What is written to a terminal that was taken over: only what changed; and what keys mean."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
from collections.abc import Iterator

import pytest

from supervisor.cli.screen import BEGIN, END, ENTER, LEAVE, Screen, keys


class Terminal:
    """A pseudo-terminal with a screen on it."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.resize(20, 4)
        self.stream = os.fdopen(self.theirs, encoding="utf-8", closefd=False)
        self.screen = Screen(self.stream, self.stream)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    @property
    def written(self) -> str:
        seen = b""
        while select.select([self.ours], [], [], 0)[0]:
            seen += os.read(self.ours, 65536)
        return seen.decode()

    def close(self) -> None:
        self.stream.close()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_only_lines_that_changed_are_written_in_one_update(terminal: Terminal) -> None:
    terminal.screen.open()
    terminal.screen.draw(["one", "two", "three"])
    assert terminal.written.startswith(ENTER)
    terminal.screen.draw(["one", "2", "three"])
    assert terminal.written == f"{BEGIN}\x1b[2;1H2\x1b[0m\x1b[K{END}"
    terminal.screen.draw(["one", "2", "three"])
    assert terminal.written == ""
    terminal.screen.draw(["one"])
    assert terminal.written == f"{BEGIN}\x1b[2;1H\x1b[0m\x1b[K\x1b[3;1H\x1b[0m\x1b[K{END}"


def test_a_line_as_wide_as_the_screen_keeps_its_last_letter(terminal: Terminal) -> None:
    terminal.screen.open()
    terminal.screen.draw(["\x1b[1m" + "x" * 20])
    assert "x\x1b[0m\x1b[K" not in terminal.written


def test_after_a_change_of_size_everything_is_written_anew(terminal: Terminal) -> None:
    terminal.screen.open()
    terminal.screen.draw(["one", "two", "three", "four"])
    assert terminal.written
    terminal.resize(10, 2)
    terminal.screen.draw(["one", "two", "three", "four"])
    seen = terminal.written
    assert "\x1b[2J" in seen
    assert "two" in seen
    assert "three" not in seen  # there are two lines only


def test_the_terminal_is_given_back_as_it_was(terminal: Terminal) -> None:
    before = termios.tcgetattr(terminal.theirs)
    for _ in range(2):
        terminal.screen.open()
        assert termios.tcgetattr(terminal.theirs) != before
        terminal.screen.close()
        assert termios.tcgetattr(terminal.theirs) == before
        assert terminal.written.endswith(LEAVE)
    terminal.screen.close()
    terminal.screen.draw(["nothing is drawn any more"])
    assert terminal.written == ""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (b"cq", ["c", "q"]),
        (b"\x1b[A\x1b[B\x1bOA", ["up", "down", "up"]),
        (b"\x1b[5~\x1b[6~\x1b[H\x1b[4~", ["page up", "page down", "home", "end"]),
        (b"\x1b[1;5Cq", ["q"]),
        (b"\x1b", []),
        ("ä".encode() + b"\x0c", ["redraw"]),
        (b" ", [" "]),
    ],
)
def test_keys_have_names(typed: bytes, meant: list[str]) -> None:
    assert keys(typed) == meant
