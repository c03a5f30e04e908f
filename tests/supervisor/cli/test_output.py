"""The output contract of every command: no escape bytes where no terminal is, exit codes, JSON errors."""

from __future__ import annotations

import json
import os
import pty
from collections.abc import Iterator

import pytest
from team import Team

ESCAPE = "\x1b"
# Every command that reads; those that change something come in their own order below.
READING = [
    ["--help"],
    ["--version"],
    ["status"],
    ["status", "--json"],
    ["status", "nobody"],
    ["logs"],
    ["logs", "--json"],
    ["events"],
    ["events", "--json"],
    ["top"],
    ["top", "--json"],
    ["models"],
    ["doctor"],
    ["doctor", "--json"],
    ["version"],
    ["version", "--json"],
    ["config", "check"],
    ["config", "show", "--origin"],
    ["config", "path"],
    ["completion", "bash"],
    ["completion", "zsh"],
    ["completion", "fish"],
    ["ask", "apollo", "hello"],
    ["ask", "apollo", "--json", "hello"],
    ["ask", "appolo", "hello"],
    ["history", "apollo"],
    ["help"],
    ["team", "hello"],
    ["nonsense"],
    ["status", "--nonsense"],
]
CHANGING = [
    ["restart", "apollo"],
    ["stop", "apollo"],
    ["start", "apollo"],
    ["drain", "apollo"],
    ["start", "all"],
    ["up"],
]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with Team.start(tmp_path_factory.mktemp("output"), roster=["apollo", "athena"]) as team:
        yield team


def on_a_terminal(team: Team, *args: str, **env: str) -> str:
    """What a command writes to a terminal on its standard output."""
    ours, theirs = pty.openpty()
    process = team.popen(*args, stdout=theirs, env={"TERM": "xterm-256color", **env})
    os.close(theirs)
    seen = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # EIO: nobody has the other end any more
            break
        if not data:
            break
        seen += data
    os.close(ours)
    process.communicate(timeout=20)
    return seen.decode()


@pytest.mark.parametrize("args", READING, ids=" ".join)
def test_no_escape_byte_goes_into_a_file(team: Team, args: list[str]) -> None:
    done = team.run(*args, env={"TERM": "xterm-256color"})
    assert ESCAPE not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_no_escape_byte_from_commands_that_change_something(team: Team) -> None:
    for args in CHANGING:
        done = team.run(*args, env={"TERM": "xterm-256color"})
        assert ESCAPE not in done.stdout + done.stderr, args


@pytest.mark.parametrize("args", [["status"], ["logs"], ["doctor"], ["models"]], ids=" ".join)
def test_color_always_gives_colour_to_a_file_too(team: Team, args: list[str]) -> None:
    if args == ["models"]:
        assert ESCAPE not in team.run("--color", "always", *args).stdout  # there is none with builtin
    else:
        assert ESCAPE in team.run("--color", "always", *args).stdout
        assert ESCAPE in team.run(*args, env={"FORCE_COLOR": "1"}).stdout


@pytest.mark.parametrize("command", ["status", "logs", "doctor"])
def test_a_terminal_gets_colour_unless_somebody_says_no(team: Team, command: str) -> None:
    assert ESCAPE in on_a_terminal(team, command)
    assert ESCAPE not in on_a_terminal(team, command, NO_COLOR="1")
    assert ESCAPE not in on_a_terminal(team, command, TERM="dumb")
    assert ESCAPE not in on_a_terminal(team, "--color", "never", command)


def test_colour_that_was_asked_for_wins_over_no_color(team: Team) -> None:
    assert ESCAPE in team.run("--color", "always", "status", env={"NO_COLOR": "1"}).stdout
    assert ESCAPE not in team.run("status", env={"NO_COLOR": "1", "FORCE_COLOR": "1"}).stdout


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["nonsense"], 2),
        (["status", "--nonsense"], 2),
        (["restart"], 2),
        (["logs", "--since", "tomorrow"], 2),
        (["logs", "-n", "many"], 2),
        (["completion", "tcsh"], 2),
        (["models", "pull"], 2),
        (["--color", "blue", "status"], 2),
        (["--backend", "none", "status"], 2),
        (["status", "nobody"], 4),
        (["logs", "nobody"], 4),
        (["events", "nobody"], 4),
        (["restart", "nobody"], 4),
        (["models"], 5),
    ],
    ids=str,
)
def test_the_exit_code_says_whose_fault_it_is(team: Team, args: list[str], code: int) -> None:
    done = team.run(*args)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr


@pytest.mark.parametrize(
    ("args", "code", "exit_code"),
    [
        (["logs", "--json", "nobody"], "not_found", 4),
        (["status", "--json", "nobody"], "not_found", 4),
        (["models", "--json"], "builtin", 5),
        (["status", "--json", "--nonsense"], "usage", 2),
        (["--backend", "none", "status", "--json"], "config", 2),
    ],
    ids=str,
)
def test_with_json_an_error_is_one_object_on_stdout(team: Team, args: list[str], code: str, exit_code: int) -> None:
    done = team.run(*args)
    told = json.loads(done.stdout)
    assert done.returncode == exit_code
    assert set(told) == {"version", "error"}
    assert set(told["error"]) == {"code", "message", "hint"}
    assert told["error"]["code"] == code
    assert told["error"]["message"] in done.stderr or exit_code == 2


def test_without_a_team_status_is_exit_3_and_says_what_to_do(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Team.prepare(tmp_path_factory.mktemp("nobody")) as nobody:
        done = nobody.run("status", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"] == {
        "code": "not_running",
        "message": "the team is not running",
        "hint": "chorus up",
    }


def test_a_reader_that_goes_is_141_without_a_word(team: Team) -> None:
    process = team.popen("logs", "-n", "all")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=20) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
