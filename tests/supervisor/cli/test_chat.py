"""`chorus chat`, from a pipe and at a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lookalikes.ollama import Script
from team import ModelServer, Team, command

from supervisor.cli.chat import Line, understood


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture(scope="module")
def team(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with Team.start(tmp_path_factory.mktemp("chat"), "", ["apollo"], server.env) as team:
        yield team


@pytest.fixture(autouse=True)
def usual(server: ModelServer) -> None:
    server.use(Script())


# Makes the terminal its own, so that ^C reaches it as a signal.
AS_A_SESSION = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A conversation on a terminal: what it shows, and what is typed."""

    def __init__(self, team: Team, *args: str) -> None:
        self._ours, theirs = pty.openpty()
        words = [sys.executable, "-c", AS_A_SESSION, *command("chat", "apollo", *args)]
        self.process = subprocess.Popen(
            words, env=team.env | {"TERM": "xterm"}, cwd=team.home, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, pattern: str, *, typing: str = "", within: float = 60.0) -> None:
        """Waits until something is shown, and forgets what came before its end. Typed into silence: `typing`."""
        until = time.monotonic() + within
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < until, f"{pattern!r} is not in {self.shown!r}"
            if not select.select([self._ours], [], [], 0.3)[0]:
                self.type(typing)
            else:
                self.shown += os.read(self._ours, 65536).decode(errors="replace")
        self.shown = self.shown[found.end() :]

    def close(self) -> int:
        code = self.process.wait(10)
        os.close(self._ours)
        return code


def messages(server: ModelServer) -> list[str]:
    return [str(one["content"]) for one in server.asked[-1].body["messages"][1:]]


def test_each_line_of_a_pipe_is_a_message_of_one_conversation(team: Team, server: ModelServer) -> None:
    done = team.run("chat", "apollo", input="one\n\ntwo")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello, world\nHello, world\n", "")
    assert messages(server) == ["one", "Hello, world", "two"]


def test_a_failure_is_told_and_the_next_line_is_asked(team: Team, server: ModelServer) -> None:
    server.use(Script(ending="error"))
    done = team.run("chat", "apollo", input="one\n/nope\n/history\n")
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "there is no /nope" in done.stderr
    assert "Hello, world" in done.stdout


def test_retry_asks_as_if_it_had_not_been_answered(team: Team, server: ModelServer) -> None:
    team.run("chat", "apollo", input="one\ntwo\n/retry\n/retry\nthree\n")
    assert messages(server) == ["one", "Hello, world", "two", "Hello, world", "three"]


def test_save_history_and_reset(team: Team, tmp_path: Path) -> None:
    done = team.run("chat", "apollo", input=f"one\n/save {tmp_path}/c.txt\n/reset\n/history\n")
    assert re.search(r"you:\none\n\n\S+ \S+ apollo:\nHello, world\n$", (tmp_path / "c.txt").read_text())
    assert "forgot 2 turns" in done.stderr
    assert done.stdout.endswith("nothing was said yet\n")


def test_a_session_goes_on(team: Team, server: ModelServer) -> None:
    for text in ("one", "two"):
        team.run("chat", "apollo", "--session", "mine", input=text)
    assert messages(server) == ["one", "Hello, world", "two"]


def test_exit_ends_it(team: Team, server: ModelServer) -> None:
    before = len(server.asked)
    assert team.run("chat", "apollo", input="/exit\nunasked\n").returncode == 0
    assert len(server.asked) == before


def test_a_name_that_nobody_has_is_exit_4(team: Team) -> None:
    assert team.run("chat", "apolo", input="hello").returncode == 4


def test_ctrl_c_ends_a_conversation_from_a_pipe(team: Team, server: ModelServer) -> None:
    server.use(Script(delay_first=60))
    before = len(server.asked)
    process = team.popen("chat", "apollo", stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(b"one\ntwo\n")
    process.stdin.flush()
    server.wait_asked(before + 1)
    process.send_signal(signal.SIGINT)
    server.wait_left(within=1.0)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert len(server.asked) == before + 1


def test_at_a_terminal_ctrl_c_stops_the_answer_and_stays(team: Team, server: ModelServer) -> None:
    terminal = Terminal(team)
    server.use(Script(tokens=("word ",), endless=True, rate=50))
    terminal.wait_for("apollo> ")
    terminal.type("hello\r")
    terminal.wait_for("word word ")
    terminal.type("\x03")
    server.wait_left(within=1.0)
    terminal.wait_for(r"\[Interrupted - .* tokens\]")
    terminal.wait_for("apollo> ")
    server.use(Script())
    terminal.type("again\r")
    terminal.wait_for("Hello, world")
    terminal.wait_for(r"\[Complete - .*\]")
    terminal.wait_for("apollo> ")
    terminal.type("/exit\r")
    terminal.wait_for("to go on: chorus chat apollo --session ")
    assert terminal.close() == 0


def test_a_paste_is_one_message(team: Team, server: ModelServer) -> None:
    terminal = Terminal(team)
    terminal.wait_for("apollo> ")
    terminal.type("\x1b[200~first\rsecond\x1b[201~\r")
    terminal.wait_for("Hello, world")
    terminal.wait_for("apollo> ")
    terminal.type("\x04")
    assert terminal.close() == 0
    assert messages(server) == ["first\nsecond"]


def test_ctrl_c_at_the_prompt_drops_the_line(team: Team, server: ModelServer) -> None:
    before = len(server.asked)
    terminal = Terminal(team)
    terminal.wait_for("apollo> ")
    terminal.type("unwanted")
    terminal.wait_for("unwanted")
    # CPython does not notice a signal between readline's prompt and its first wait for a key.
    terminal.wait_for(r"Ctrl-D or /exit leaves", typing="\x03")
    terminal.wait_for("apollo> ")
    terminal.type("\x04")
    assert terminal.close() == 0
    assert len(server.asked) == before


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("  ", None),
        ("hello", Line("hello")),
        ("/help", Line("", "help")),
        ("/save a b.txt", Line("a b.txt", "save")),
        ("/quit", Line("", "exit")),
        ("/etc/passwd is what?", Line("/etc/passwd is what?")),
        ("/help\nme", Line("/help\nme")),
    ],
)
def test_only_a_word_behind_a_slash_is_a_command(text: str, meant: Line | None) -> None:
    assert understood(text) == meant
