"""`chorus top` on a terminal, and where there is none. The terminal is given back on every way out."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from keeping import wait_gone
from team import Team, command, wait_until

from protocol.names import ROSTER
from supervisor.cli.exits import Exit
from supervisor.cli.screen import ENTER, LEAVE

# Makes the terminal its own, so that keys reach it as signals.
AS_A_SESSION = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with Team.start(tmp_path_factory.mktemp("top"), roster=list(ROSTER)) as team:
        yield team


class Terminal:
    """`chorus top` on a terminal of its own."""

    def __init__(self, team: Team, columns: int = 80, lines: int = 24) -> None:
        self._ours, self._theirs = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(self._theirs)
        words = [sys.executable, "-c", AS_A_SESSION, *command("top")]
        self.process = subprocess.Popen(
            words,
            env=team.env | {"TERM": "xterm-256color"},
            cwd=team.home,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
        )
        self.shown = ""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def hang_up(self) -> None:
        os.close(self._theirs)
        os.close(self._ours)

    def wait_for(self, pattern: str, within: float = 60.0) -> None:
        """Waits until something is written, and forgets what came before its end."""
        until = time.monotonic() + within
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < until, f"{pattern!r} is not in {self.shown!r}"
            self._take(0.3)
        self.shown = self.shown[found.end() :]

    def end(self) -> int:
        """The exit code; checks that the terminal is as it was."""
        while self.process.poll() is None:
            self._take(0.05)
        self._take(0)
        assert LEAVE in self.shown, self.shown
        assert "\x1b" not in self.shown.rpartition(LEAVE)[2]
        assert termios.tcgetattr(self._theirs) == self.before
        os.close(self._ours)
        os.close(self._theirs)
        return self.process.returncode

    def _take(self, within: float) -> None:
        while select.select([self._ours], [], [], within)[0]:
            self.shown += os.read(self._ours, 65536).decode(errors="replace")
            within = 0


def supervisor_of(team: Team) -> int:
    return int(team.status()["supervisor"]["pid"])


WAYS_OUT: dict[str, tuple[Callable[[Terminal], None], int]] = {
    "q": (lambda top: top.type("q"), Exit.DONE),
    "Ctrl-C": (lambda top: top.type("\x03"), Exit.INTERRUPTED),
    "TERM": (lambda top: top.process.terminate(), -signal.SIGTERM),
    "HUP": (lambda top: top.process.send_signal(signal.SIGHUP), -signal.SIGHUP),
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_the_terminal_is_given_back_on_every_way_out(team: Team, way: str) -> None:
    leave, code = WAYS_OUT[way]
    top = Terminal(team)
    top.wait_for(re.escape(ENTER))
    top.wait_for("hephaestus")
    leave(top)
    assert top.end() == code


def test_when_the_supervisor_dies_it_says_so_and_gives_the_terminal_back(team: Team) -> None:
    top = Terminal(team)
    top.wait_for("hephaestus")
    pid = supervisor_of(team)
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    assert top.end() == Exit.NOT_RUNNING
    after = top.shown.rpartition(LEAVE)[2]
    assert "the supervisor has ended" in after
    assert "do: chorus up" in after
    assert team.run("up").returncode == 0


def test_a_terminal_that_is_closed_ends_it_without_a_word(team: Team) -> None:
    top = Terminal(team)
    top.wait_for("hephaestus")
    top.hang_up()
    assert top.process.wait(10) == -signal.SIGHUP


def test_a_supervisor_that_hangs_leaves_the_keys_alive(team: Team) -> None:
    top = Terminal(team)
    top.wait_for("hephaestus")
    pid = supervisor_of(team)
    os.kill(pid, signal.SIGSTOP)
    try:
        top.wait_for("no answer for")
        top.type("q")
        assert top.end() == 0
    finally:
        os.kill(pid, signal.SIGCONT)


def test_letters_sort_and_a_change_of_state_is_shown_at_once(team: Team) -> None:
    top = Terminal(team)
    top.wait_for("sort: ")
    top.type("n")
    top.wait_for(r"\x1b\[36m\x1b\[1mNAME")
    top.type("c")
    top.wait_for(r"\x1b\[36m\x1b\[1m CPU%")
    team.run("stop", "athena")
    top.wait_for("stopped")
    team.run("start", "athena")
    top.wait_for("ready")
    top.type("q")
    assert top.end() == 0


def test_a_new_size_is_a_new_frame(team: Team) -> None:
    top = Terminal(team)
    top.wait_for("hephaestus")
    top.resize(200, 50)
    top.process.send_signal(signal.SIGWINCH)
    top.wait_for("REMARK")
    top.type("q")
    assert top.end() == 0


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(team: Team) -> None:
    top = Terminal(team)
    top.wait_for("hephaestus")
    top.process.send_signal(signal.SIGTSTP)
    top.wait_for(re.escape(LEAVE))
    wait_until(lambda: psutil.Process(top.process.pid).status() == psutil.STATUS_STOPPED, 5, "it did not stop")
    top.process.send_signal(signal.SIGCONT)
    top.wait_for(re.escape(ENTER))
    top.wait_for("hephaestus")
    top.type("q")
    assert top.end() == 0


def test_it_takes_little_of_a_processor(team: Team) -> None:
    top = Terminal(team, 200, 50)
    top.wait_for("hephaestus")
    process = psutil.Process(top.process.pid)
    before, began = sum(process.cpu_times()[:2]), time.monotonic()
    for _ in range(5):
        top.wait_for(r"\d\d:\d\d:\d\d")
        top.wait_for("\x1b\\[\\?2026l")
    took = time.monotonic() - began
    used = sum(process.cpu_times()[:2]) - before
    top.type("q")
    top.end()
    assert took > 3
    assert used / took <= 0.04  # 0.4 % measured; a machine that is busy with other tests counts coarsely


def test_in_a_real_terminal_nothing_is_wrapped_and_nothing_is_left_behind(team: Team, tmp_path: Path) -> None:
    if shutil.which("tmux") is None:
        reason = "tmux is not installed"
        print(reason)
        pytest.skip(reason)

    def tmux(*args: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", str(tmp_path / "t"), "-f", "/dev/null", *args],
            env=team.env | {"TERM": "xterm-256color", "SHELL": "/bin/sh"},
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def screen() -> list[str]:
        return tmux("capture-pane", "-p").split("\n")[:-1]

    tmux("new-session", "-d", "-x", "80", "-y", "24", "env PS1='$ ' sh")
    try:
        tmux("send-keys", "echo this was here before; " + " ".join(command("top")) + "; echo code $?", "Enter")
        wait_until(lambda: "q: quit" in screen()[-1], 15, "the keys are not in the last line")
        lines = screen()
        assert lines[0].startswith("chorus ")
        assert {line.split()[0] for line in lines[5:23]} == set(ROSTER)
        assert len(lines) == 24
        tmux("resize-window", "-x", "200", "-y", "50")
        wait_until(lambda: "REMARK" in "".join(screen()), 15, "the wide table does not come")
        assert sum(line.startswith("hephaestus") for line in screen()) == 1
        tmux("send-keys", "q")
        wait_until(lambda: "code 0" in screen(), 15, "it does not end")
        assert any("this was here before" in line for line in screen())
        assert not any("hephaestus" in line for line in screen())
    finally:
        tmux("kill-server")


# -- without a terminal ---------------------------------------------------------------------------------------------------


def test_without_a_terminal_it_is_one_measured_sample(team: Team) -> None:
    done = team.run("top", env={"TERM": "xterm-256color"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    header, *lines = done.stdout.splitlines()
    assert header.split()[:6] == ["NAME", "STATE", "PID", "CPU%", "MEMORY", "BUSY"]
    assert sorted(line.split()[0] for line in lines) == sorted(ROSTER)
    assert all(re.match(r"\w+ +\w+ +\d+ +\d+\.\d +\d+ MiB ", line) for line in lines)


def test_a_terminal_that_can_nothing_gets_one_sample_too(team: Team) -> None:
    ours, theirs = pty.openpty()
    process = team.popen("top", stdout=theirs, env={"TERM": "dumb"})
    os.close(theirs)
    assert process.wait(15) == 0
    process.communicate()
    assert b"\x1b" not in os.read(ours, 65536)
    os.close(ours)


def test_json_is_one_object_with_what_was_measured(team: Team) -> None:
    told = json.loads(team.run("top", "--json").stdout)
    assert told["version"] == 1
    assert 0.9 < told["interval"] < 5
    assert [one["name"] for one in told["specialists"]] == list(ROSTER)
    for one in [*told["specialists"], told["supervisor"]]:
        assert one["rss_bytes"] == pytest.approx(psutil.Process(one["pid"]).memory_info().rss, rel=0.5)
        assert 0 <= one["cpu_percent"] < 100
    # Pages that the forked processes share count once.
    assert 0 < told["pss_bytes"] < sum(one["rss_bytes"] for one in told["specialists"])


def test_without_a_team_it_is_exit_3_with_the_remedy(tmp_path: Path) -> None:
    with Team.prepare(tmp_path) as nobody:
        done = nobody.run("top")
        as_json = nobody.run("top", "--json")
    assert (done.returncode, done.stdout) == (Exit.NOT_RUNNING, "")
    assert "do: chorus up" in done.stderr
    assert as_json.returncode == Exit.NOT_RUNNING
    assert json.loads(as_json.stdout)["error"]["hint"] == "chorus up"
