"""`chorus team` with real processes: everybody at once, and whoever fails is one entry that failed."""

from __future__ import annotations

import json
import os
import pty
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lookalikes.ollama import Script
from team import ModelServer, Team

FOUR = ["apollo", "athena", "metis", "numa"]


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture(scope="module")
def team(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """All eighteen."""
    with Team.start(tmp_path_factory.mktemp("team"), env=server.env) as team:
        yield team


@pytest.fixture
def four(server: ModelServer, tmp_path: Path) -> Iterator[Team]:
    """Four, of whom athena's model is missing."""
    config = '[supervision]\nrestart = "never"\n[specialists.athena]\nmodel = "absent"\n'
    with Team.start(tmp_path, config, FOUR, server.env) as team:
        yield team


@pytest.fixture(autouse=True)
def usual(server: ModelServer) -> None:
    server.use(Script())


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_everybody_answers_at_the_same_time(team: Team, server: ModelServer) -> None:
    server.use(Script(delay_first=1.0))
    done = team.run("team", "hello", "--json")
    finished = events(done.stdout)[-1]
    assert (done.returncode, len(finished["responses"])) == (0, 18)
    assert 1.0 <= finished["elapsed_time"] < 3.0


def test_one_dead_one_hung_and_one_failing_leave_the_others(server: ModelServer, tmp_path: Path) -> None:
    config = '[supervision]\nrestart = "never"\nhung_after = 60\n[specialists.metis]\nmodel = "absent"\n'
    with Team.start(tmp_path, config, env=server.env) as team:
        team.signal("numa", signal.SIGKILL)
        team.signal("apollo", signal.SIGSTOP)
        done = team.run("team", "hello", "--timeout", "1", "--json")
    finished = events(done.stdout)[-1]
    assert (done.returncode, finished["event"], len(finished["responses"])) == (6, "finished", 15)
    failed = {entry["name"]: entry["error"]["code"] for entry in finished["failed"] + finished["timed_out"]}
    assert failed == {"numa": "unavailable", "apollo": "stalled", "metis": "model_missing"}
    last = done.stderr.splitlines()[-1]
    assert last.startswith("15 of 18 answered in ")
    assert all(f"{name} failed: {code}" in last for name, code in failed.items())


def test_whole_answers_where_nobody_looks(team: Team) -> None:
    done = team.run("team", "--only", "apollo,numa-ai", "hello")
    blocks = sorted(done.stdout.split("\n\n"))
    assert done.returncode == 0
    assert [block.splitlines()[0].split(" (")[0] for block in blocks] == ["== apollo", "== numa"]
    assert all(", 3 tokens) ==\nHello, world" in block for block in blocks)
    assert done.stderr.startswith("2 of 2 answered in ")
    assert done.stderr.endswith("s, 6 tokens\n")


def test_lines_are_whole_and_have_their_author(team: Team, server: ModelServer) -> None:
    server.use(Script(tokens=("a ", "b\nc", " d", "\n", "e")))
    done = team.run("team", "--only", "apollo,numa", "--view", "lines", "hello")
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("apollo")] == ["apollo | a b", "apollo | c d", "apollo | e"]
    assert [line for line in lines if line.startswith("numa")] == ["numa   | a b", "numa   | c d", "numa   | e"]


def test_a_screen_of_columns_leaves_the_answers_behind(team: Team) -> None:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, True)
    env = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    flags = ("--only", "apollo,numa", "--synthesize", "rhetor", "--view", "columns")
    process = team.popen("team", *flags, "hello", stdout=theirs, env=env)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # EIO: the other end is closed
            break
        shown += part
    os.close(ours)
    assert process.communicate(timeout=10)[1].startswith(b"2 of 2 answered")
    screen, _, scrollback = shown.decode().rpartition("\x1b[?1049l")
    assert "\x1b[?1049h" in screen
    heads = [line.split(" (")[0].rstrip() for line in scrollback.splitlines() if line.startswith("== ")]
    assert heads == ["== apollo", "== numa", "== synthesis by rhetor =="]


def test_only_those_named_are_asked_and_those_that_are_down_are_entries(four: Team) -> None:
    four.run("stop", "numa")
    done = four.run("team", "--only", "apollo,numa", "hello", "--json")
    finished = events(done.stdout)[-1]
    assert done.returncode == 6
    assert [entry["name"] for entry in finished["responses"]] == ["apollo"]
    assert [(entry["name"], entry["error"]["code"]) for entry in finished["failed"]] == [("numa", "unavailable")]
    assert "numa is stopped  do: chorus start numa" in done.stderr


def test_one_that_was_stopped_is_not_missed(four: Team) -> None:
    four.run("stop", "athena", "numa")
    assert four.run("team", "hello").stderr.startswith("2 of 2 answered")


def test_nobody_answering_is_exit_1(four: Team) -> None:
    done = four.run("team", "--only", "athena", "hello")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("0 of 1 answered in ")


def test_a_name_that_nobody_has_is_exit_4(team: Team) -> None:
    for args in (["--only", "apolo"], ["--synthesize", "apolo"]):
        done = team.run("team", *args, "hello")
        assert (done.returncode, done.stdout) == (4, "")
        assert "did you mean apollo?" in done.stderr


def test_the_deadline_ends_all_of_it(team: Team, server: ModelServer) -> None:
    server.use(Script(tokens=("word ",), endless=True, rate=20))
    done = team.run("team", "--only", "apollo,numa", "--deadline", "0.5", "hello", "--json")
    finished = events(done.stdout)[-1]
    assert done.returncode == 1
    assert [entry["error"]["code"] for entry in finished["timed_out"]] == ["deadline", "deadline"]
    assert all(entry["content"].startswith("word ") for entry in finished["timed_out"])


def test_the_synthesis_reads_every_answer(team: Team, server: ModelServer) -> None:
    before = len(server.asked)
    done = team.run("team", "--only", "apollo,numa", "--synthesize", "rhetor-ai", "what next?")
    assert done.returncode == 0
    assert done.stdout.endswith("\n== synthesis by rhetor ==\nHello, world\n")
    asked = str(server.asked[-1].body["messages"][-1]["content"])
    assert len(server.asked) == before + 3
    assert asked.startswith("the team answered before you:\n> ")
    assert all(part in asked for part in ("> apollo:\n> Hello, world", "> numa:\n> Hello, world", "what next?"))


def test_json_ends_with_the_synthesis_in_finished(team: Team) -> None:
    done = team.run("team", "--only", "apollo,numa", "--synthesize", "rhetor", "--json", "hello")
    said = events(done.stdout)
    assert [said[0]["event"], said[-1]["event"]] == ["asked", "finished"]
    assert [one["event"] for one in said].count("finished") == 1
    assert said[-1]["synthesis"] == "Hello, world"
    assert said[-1]["responses_by_id"] == {"apollo-ai": "Hello, world", "numa-ai": "Hello, world"}


@pytest.mark.parametrize("as_json", [True, False])
def test_ctrl_c_withdraws_the_question_and_tells_what_came(
    team: Team, server: ModelServer, tmp_path: Path, as_json: bool
) -> None:
    server.use(Script(tokens=("word ",), endless=True, rate=50))
    before = len(server.asked)
    flags = ["--json"] if as_json else []
    process = team.popen("team", "--only", "apollo,numa", *flags, "--save", str(tmp_path / "t.md"), "hello")
    server.wait_asked(before + 2)
    if as_json:
        assert process.stdout
        while b'"token"' not in process.stdout.readline():
            pass
    process.send_signal(signal.SIGINT)
    server.wait_left(within=1.0)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err.decode().splitlines()[-1].startswith("Interrupted: 0 of 2 answered in ")
    assert (tmp_path / "t.md").read_text().splitlines()[-1].startswith("[Interrupted: ")
    if as_json:
        finished = events(out.decode())[-1]
        assert [entry["error"]["code"] for entry in finished["failed"]] == ["cancelled", "cancelled"]


def test_ctrl_c_in_the_synthesis_keeps_every_answer(team: Team, server: ModelServer, tmp_path: Path) -> None:
    server.use(Script(hold=True))
    before = len(server.asked)
    save = ["--save", str(tmp_path / "t.md")]
    process = team.popen("team", "--only", "apollo,numa", "--synthesize", "rhetor", *save, "--json", "hello")
    server.wait_asked(before + 2)
    server.use(Script(tokens=("word ",), endless=True, rate=50))
    server.let_go()
    assert process.stdout
    line = b""
    while not (b'"event":"token"' in line and b'"phase":"synthesis"' in line):
        line = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    server.wait_left(within=10.0)
    out, err = process.communicate(timeout=10)
    finished = events(out.decode())[-1]
    assert process.returncode == 130
    assert finished["responses_by_id"] == {"apollo-ai": "Hello, world", "numa-ai": "Hello, world"}
    assert finished["moderation"]["error"]["code"] == "cancelled"
    assert finished["moderation"]["content"].startswith("word ")
    assert err.decode().splitlines()[-1].startswith("Interrupted: 2 of 2 answered in ")
    assert "== synthesis by rhetor ==\nword " in (tmp_path / "t.md").read_text()


def test_a_synthesis_that_fails_is_told_beside_the_answers(four: Team) -> None:
    done = four.run("team", "--only", "apollo", "--synthesize", "athena", "hello")
    assert done.returncode == 6
    assert "Hello, world" in done.stdout
    assert "error: nothing was made of the answers: athena: " in done.stderr


def test_a_broken_pipe_withdraws_the_question(team: Team, server: ModelServer) -> None:
    server.use(Script(tokens=("a line\n",), endless=True, rate=50))
    process = team.popen("team", "--view", "lines", "--only", "apollo,numa", "hello")
    assert process.stdout
    assert b" | a line" in process.stdout.readline()
    process.stdout.close()
    server.wait_left(within=2.0)
    assert process.wait(10) == 141
    assert process.stderr
    with process.stderr as said:
        assert said.read() == b""


def test_it_is_saved_as_text_or_as_events(team: Team, tmp_path: Path) -> None:
    for name in ("t.md", "t.jsonl"):
        assert team.run("team", "--only", "apollo", "--save", str(tmp_path / name), "hello").returncode == 0
    assert (tmp_path / "t.md").read_text().startswith("== apollo (")
    assert [one["event"] for one in events((tmp_path / "t.jsonl").read_text())][-2:] == ["answer", "finished"]


def test_without_a_supervisor_those_alive_are_asked(tmp_path: Path, server: ModelServer) -> None:
    with Team.start(tmp_path, roster=["apollo", "numa"], env=server.env) as team:
        os.kill(team.status()["supervisor"]["pid"], signal.SIGKILL)
        done = team.run("team", "hello")
        assert (done.returncode, done.stdout.count("Hello, world")) == (0, 2)
        assert "the supervisor is not running" in done.stderr
        team.run("up")
