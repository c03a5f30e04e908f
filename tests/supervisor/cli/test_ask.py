"""`chorus ask` with real processes: what streams, what Ctrl-C stops, what goes where, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lookalikes.ollama import Model, Script
from team import ModelServer, Team, command

ENDLESS = Script(tokens=("word ",), endless=True, rate=50)
SILENT = Script(delay_first=60)


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    models = {"tiny:latest": Model(), "thinker:latest": Model(capabilities=("completion", "thinking"))}
    with ModelServer(models=models) as server:
        yield server


@pytest.fixture(scope="module")
def team(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    config = '[specialists.athena]\nmodel = "absent"\n[backend]\nmodel = "tiny"\n'
    folder = tmp_path_factory.mktemp("ask")
    with Team.start(folder, config, ["apollo", "athena", "tekton", "metis"], server.env) as team:
        team.run("stop", "metis")
        yield team


@pytest.fixture(autouse=True)
def usual(server: ModelServer) -> None:
    server.use(Script())


def finished(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


def last_asked(server: ModelServer) -> str:
    return str(server.asked[-1].body["messages"][-1]["content"])


# -- what is said where ---------------------------------------------------------------------------------------------------


def test_the_answer_is_all_that_goes_to_stdout(team: Team) -> None:
    done = team.run("ask", "apollo", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello, world\n", "")


@pytest.mark.parametrize("name", ["Apollo-AI", "apollo-ci", "tekton-core", "TEKTON"])
def test_any_spelling_of_a_name_is_a_name(team: Team, server: ModelServer, name: str) -> None:
    assert team.run("ask", name, "who", "are", "you").returncode == 0
    assert last_asked(server) == "who are you"


def test_without_a_name_somebody_ready_answers_and_is_named(team: Team) -> None:
    done = team.run("ask", "what next?")
    assert (done.returncode, done.stdout) == (0, "Hello, world\n")
    assert done.stderr in ("apollo answers\n", "tekton_core answers\n")


def test_after_two_dashes_the_first_word_is_no_name(team: Team, server: ModelServer) -> None:
    assert team.run("ask", "--", "apollo", "is", "--who").returncode == 0
    assert last_asked(server) == "apollo is --who"


def test_a_near_miss_before_text_is_refused(team: Team) -> None:
    done = team.run("ask", "apolo", "who are you")
    assert (done.returncode, done.stdout) == (4, "")
    assert "did you mean apollo?" in done.stderr


def test_an_ordinary_word_is_not_a_near_miss(team: Team, server: ModelServer) -> None:
    assert team.run("ask", "athens", "is", "where").returncode == 0
    assert last_asked(server) == "athens is where"


def test_json_is_the_streams_lines_to_the_end(team: Team) -> None:
    lines = [json.loads(line) for line in team.run("ask", "apollo", "--json", "hello").stdout.splitlines()]
    assert [line["type"] for line in lines] == ["stream_start", *["stream_chunk"] * (len(lines) - 2), "stream_end"]
    assert lines[-1]["content"] == "".join(line.get("content", "") for line in lines[1:-1]) == "Hello, world"


def test_json_ends_with_an_error_object_where_it_fails(team: Team) -> None:
    done = team.run("ask", "athena", "--json", "hello")
    assert done.returncode == 5
    assert json.loads(done.stdout.splitlines()[-1])["error"]["code"] == "model_missing"


def test_session_model_and_hints_reach_the_specialist(team: Team, server: ModelServer) -> None:
    for text in ("one", "two"):
        asked = ["--session", "s1", "--model", "thinker", "--hint", "brief", "--hint", "plain"]
        assert team.run("ask", "apollo", *asked, text).returncode == 0
    body = server.asked[-1].body
    assert (body["model"], len(body["messages"])) == ("thinker", 4)
    assert last_asked(server) == "Context: brief; plain\n\ntwo"


def test_thinking_is_shown_on_stderr_only_where_it_is_wanted(team: Team, server: ModelServer) -> None:
    server.use(Script(thinking=("hm", "mm")))
    shown = team.run("ask", "apollo", "--model", "thinker", "--think", "show", "hello")
    assert (shown.stdout, shown.stderr.strip()) == ("Hello, world\n", "hmmm")
    hidden = team.run("ask", "apollo", "--model", "thinker", "hello")
    assert (hidden.stdout, hidden.stderr) == ("Hello, world\n", "")


def test_the_token_limit_is_told(team: Team, server: ModelServer) -> None:
    server.use(Script(done_reason="length"))
    assert team.run("ask", "apollo", "hello").stderr == "[Stopped at the token limit - 3 tokens]\n"


def test_an_error_keeps_the_partial_answer_on_stdout(team: Team, server: ModelServer, tmp_path: Path) -> None:
    server.use(Script(ending="error"))
    done = team.run("ask", "apollo", "--save", str(tmp_path / "a.txt"), "hello")
    assert (done.returncode, done.stdout) == (5, "Hello, world\n")
    assert done.stderr.startswith("error: ")
    assert (tmp_path / "a.txt").read_text().startswith("Hello, world\n[Incomplete - ")


def test_a_saved_answer_is_whole_and_leaves_no_part(team: Team, tmp_path: Path) -> None:
    team.run("ask", "apollo", "--save", str(tmp_path / "a.txt"), "hello")
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {"a.txt": "Hello, world\n"}


def test_the_built_in_echo_says_what_it_is(tmp_path: Path) -> None:
    with Team.start(tmp_path, "[backend]\npace = 100000\n", ["apollo"]) as team:
        done = team.run("ask", "apollo", "hello")
        assert "You asked: hello" in done.stdout
        assert "built-in echo" in done.stderr


# -- a terminal, and none ---------------------------------------------------------------------------------------------------

REDIRECTED = [
    ["ask", "apollo", "hello"],
    ["ask", "athena", "hello"],
    ["ask", "hello", "--json"],
    ["team", "hello"],
    ["team", "hello", "--view", "lines"],
    ["team", "hello", "--view", "columns"],
    ["team", "hello", "--json"],
    ["chat", "apollo"],
    ["history"],
    ["history", "show", "1"],
    ["history", "export"],
    ["history", "search", "hello"],
]


@pytest.mark.parametrize("args", REDIRECTED, ids=" ".join)
def test_no_escape_byte_where_there_is_no_terminal(team: Team, args: list[str]) -> None:
    team.run("ask", "apollo", "hello")
    done = team.run(*args, input="hello\n")
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr


def test_control_bytes_of_a_model_are_made_harmless_on_a_terminal(team: Team, server: ModelServer) -> None:
    server.use(Script(tokens=("a\x1b", "]52;c;x\x07b", "\u009b31m")))
    ours, theirs = pty.openpty()
    process = team.popen("ask", "apollo", "hello", stdout=theirs)
    os.close(theirs)
    assert finished(process)[0] == 0
    assert os.read(ours, 4096).decode() == "a\ufffd]52;c;x\ufffdb\ufffd31m\r\n"
    os.close(ours)


def test_a_pipe_gets_what_the_model_said_as_it_is(team: Team, server: ModelServer) -> None:
    server.use(Script(tokens=("a\x1b[31m",)))
    assert team.run("ask", "apollo", "hello").stdout == "a\x1b[31m\n"


def test_a_terminal_is_told_the_figures(team: Team) -> None:
    ours, theirs = pty.openpty()
    process = team.popen("ask", "apollo", "hello", stderr=theirs, env={"TERM": "xterm"})
    os.close(theirs)
    assert finished(process)[1] == b"Hello, world\n"
    told = os.read(ours, 4096).decode()
    os.close(ours)
    assert "[Complete - " in told
    assert "s, 3 tokens] 3.0 tok/s, first token " in told


# -- streams, and what stops them ------------------------------------------------------------------------------------------


def test_the_stream_arrives_while_it_is_made(team: Team, server: ModelServer) -> None:
    server.use(ENDLESS)
    process = team.popen("ask", "apollo", "hello")
    assert process.stdout
    first, second = os.read(process.stdout.fileno(), 4096), os.read(process.stdout.fileno(), 4096)
    assert first.startswith(b"word ")
    assert second
    process.send_signal(signal.SIGINT)
    assert finished(process)[0] == 130


@pytest.mark.parametrize("script", [SILENT, ENDLESS], ids=["before the first token", "in the middle"])
def test_ctrl_c_cancels_at_the_model_server(team: Team, server: ModelServer, script: Script, tmp_path: Path) -> None:
    server.use(script)
    before = len(server.asked)
    process = team.popen("ask", "apollo", "--save", str(tmp_path / "a.txt"), "hello")
    server.wait_asked(before + 1)
    assert process.stdout
    if script is ENDLESS:
        os.read(process.stdout.fileno(), 4096)
    process.send_signal(signal.SIGINT)
    server.wait_left(within=1.0)
    code, _out, err = finished(process)
    assert code == 130
    assert err.decode().startswith("[Interrupted - ")
    kept = {one.name: one.read_text() for one in tmp_path.iterdir()}
    if script is ENDLESS:
        assert kept["a.txt"].rstrip("\n").splitlines()[-1] == err.decode().strip()
    assert list(kept) == (["a.txt"] if script is ENDLESS else [])


def test_a_broken_pipe_cancels_and_says_nothing(team: Team, server: ModelServer) -> None:
    server.use(ENDLESS)
    process = team.popen("ask", "apollo", "hello")
    assert process.stdout
    os.read(process.stdout.fileno(), 10)
    process.stdout.close()
    server.wait_left(within=2.0)
    assert process.wait(10) == 141
    assert process.stderr
    with process.stderr as said:
        assert said.read() == b""


def test_head_ends_it_with_141(team: Team, server: ModelServer) -> None:
    server.use(Script(tokens=("a line\n",), endless=True, rate=50))
    line = f"set -o pipefail; {' '.join(command('ask', 'apollo', 'hello'))} | head -1"
    done = subprocess.run(
        ["bash", "-c", line], env=team.env, cwd=team.home, capture_output=True, stdin=subprocess.DEVNULL, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr) == (141, b"a line\n", b"")


def test_a_reader_that_pauses_does_not_hold_ctrl_c(team: Team, server: ModelServer) -> None:
    server.use(Script(tokens=("word " * 1000,), endless=True))
    before = len(server.asked)
    process = team.popen("ask", "apollo", "hello")
    server.wait_asked(before + 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stderr.close()


# -- standard input -----------------------------------------------------------------------------------------------------------


def test_stdin_comes_before_the_text(team: Team, server: ModelServer) -> None:
    assert team.run("ask", "apollo", "sum", "it", "up", input="a\nb\n").returncode == 0
    assert last_asked(server) == "a\nb\n\nsum it up"


def test_a_file_is_read(team: Team, server: ModelServer, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("from a file\n")
    with (tmp_path / "f").open("rb") as file:
        assert finished(team.popen("ask", "apollo", stdin=file))[0] == 0
    assert last_asked(server) == "from a file"


def test_a_dash_waits_for_stdin_whatever_it_is(team: Team, server: ModelServer) -> None:
    process = team.popen("ask", "apollo", "-", stdin=subprocess.PIPE)
    assert process.communicate(b"typed", timeout=20)[0] == b"Hello, world\n"
    assert last_asked(server) == "typed"


def test_stdin_left_open_is_not_waited_for(team: Team) -> None:
    read, write = os.pipe()
    code, out, err = finished(team.popen("ask", "apollo", "hello", stdin=read))
    os.close(read)
    os.close(write)
    assert (code, out) == (0, b"Hello, world\n")
    assert b"reading stdin..." in err


def test_nothing_to_ask_at_a_terminal_is_a_usage_error(team: Team) -> None:
    ours, theirs = pty.openpty()
    code, out, err = finished(team.popen("ask", "apollo", stdin=theirs))
    os.close(ours)
    os.close(theirs)
    assert (code, out) == (2, b"")
    assert b"nothing to ask apollo" in err


def test_what_is_no_utf8_is_asked_all_the_same(team: Team, server: ModelServer) -> None:
    process = team.popen("ask", "apollo", "-", os.fsdecode(b"\xff"), stdin=subprocess.PIPE)
    process.communicate(b"a\xfeb", timeout=20)
    assert process.returncode == 0
    assert last_asked(server) == "a\ufffdb\n\n\ufffd"


# -- how it ends ---------------------------------------------------------------------------------------------------------------


def test_a_missing_model_is_exit_5(team: Team) -> None:
    done = team.run("ask", "athena", "hello")
    assert (done.returncode, done.stdout) == (5, "")
    assert "ollama pull absent" in done.stderr


def test_a_stopped_specialist_is_exit_3_with_the_command_that_starts_it(team: Team) -> None:
    done = team.run("ask", "metis", "hello")
    assert (done.returncode, done.stdout) == (3, "")
    assert "metis is stopped" in done.stderr
    assert "chorus start metis" in done.stderr


def test_one_that_is_not_in_the_team_is_exit_4(team: Team) -> None:
    assert team.run("ask", "hermes", "hello").returncode == 4


def test_without_a_team_it_is_exit_3(tmp_path: Path) -> None:
    team = Team.prepare(tmp_path, roster=["apollo"])
    saving = ["--save", "a.txt"]
    for args in (
        ["ask", "apollo", "hello", *saving],
        ["ask", "hello", *saving],
        ["team", "hello", *saving],
        ["history"],
    ):
        done = team.run(*args)
        assert (done.returncode, done.stdout) == (3, "")
        assert "chorus up" in done.stderr
    assert not list(team.home.glob("a.txt*"))
    team.down()


def test_a_specialist_alone_answers_without_a_supervisor(tmp_path: Path, server: ModelServer) -> None:
    team = Team.prepare(tmp_path, roster=["apollo"], env=server.env)
    alone = team.popen("specialist", "run", "apollo", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for args in (["ask", "apollo", "hello"], ["ask", "hello"], ["team", "hello"]):
            for _ in range(100):  # it says nowhere that it is ready
                done = team.run(*args)
                if done.returncode != 3:
                    break
            assert done.returncode == 0, done.stderr
            assert "Hello, world\n" in done.stdout
    finally:
        alone.terminate()
        alone.wait(10)
        team.down()


def test_a_full_disk_is_told_without_a_traceback(team: Team) -> None:
    with open("/dev/full", "wb") as full:
        code, _out, err = finished(team.popen("ask", "apollo", "hello", stdout=full))
    assert code == 1
    assert err.decode().splitlines()[-1] == "error: cannot write the answer: no space left on device"


def test_a_file_that_cannot_be_written_is_told_before_anybody_is_asked(team: Team, server: ModelServer) -> None:
    before = len(server.asked)
    done = team.run("ask", "apollo", "--save", "/nowhere/a.txt", "hello")
    assert (done.returncode, done.stdout, len(server.asked)) == (1, "", before)
    assert "cannot write /nowhere/a.txt: no such file or directory" in done.stderr


def test_term_is_an_orderly_end_too(team: Team, server: ModelServer) -> None:
    server.use(ENDLESS)
    process = team.popen("ask", "apollo", "hello")
    assert process.stdout
    os.read(process.stdout.fileno(), 4096)
    process.terminate()
    server.wait_left(within=2.0)
    code, _out, err = finished(process)
    assert (code, err[:15]) == (143, b"[Interrupted - ")


def test_a_second_ctrl_c_ends_it_at_once(team: Team, server: ModelServer) -> None:
    """Its specialist is stopped, so that no end comes that would be faster."""
    server.use(ENDLESS)
    process = team.popen("ask", "apollo", "hello")
    assert process.stdout
    os.read(process.stdout.fileno(), 4096)
    team.signal("apollo", signal.SIGSTOP)
    try:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) in (130, 143)
    finally:
        team.signal("apollo", signal.SIGCONT)
    process.communicate()


def test_the_orchestration_rules_say_who_answers(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=["apollo", "athena", "metis"]) as team:
        state = team.home / ".local/state/chorus"
        rules = {"routing_rules": [{"pattern": "plan", "specialists": ["metis-ai", "Athena"], "strategy": "all"}]}
        (state / "orchestration.json").write_text(json.dumps(rules))
        done = team.run("ask", "--", "a plan")
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith("metis and athena answer: rule 1 (plan): all who answer\n")
        assert "== metis (" in done.stdout
        assert "== athena (" in done.stdout
        assert team.run("ask", "--", "hello").stderr.startswith("apollo answers\n")
