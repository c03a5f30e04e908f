"""Specialists that are not ours: a program in any language, started on its sockets, kept like the others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from pathlib import Path

import anyio
import pytest
from keeping import control, gone, one, pids, report, until
from team import ROOT, Team, wait_until

from protocol.client import connect
from protocol.control import Drain, Restart, Stop
from protocol.messages import Chat, StreamChunk, StreamEnd

EXAMPLE = ROOT / "examples" / "chronos.mjs"
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="the example is written in Node.js, which is not here")


def configuration(command: list[str], more: str = "") -> str:
    return f"[supervision]\ngrace = 2.0\n{more}[specialists.chronos]\ncommand = {json.dumps(command)}\n"


def asked(port: int, question: str) -> str:
    with socket.create_connection(("127.0.0.1", port), 10) as caller:
        caller.sendall(question.encode() + b"\n")
        caller.shutdown(socket.SHUT_WR)
        return caller.makefile().read()


def raw_output(team: Team) -> str:
    return (team.home / ".local/state/chorus/logs/chronos.out").read_text()


@needs_node
async def test_a_specialist_in_another_language_answers_streams_and_comes_back(tmp_path: Path) -> None:
    with Team.start(tmp_path, configuration(["node", str(EXAMPLE)]), roster=["chronos", "apollo"]) as team:
        port, before = team.port("chronos"), pids(await report(team))
        assert ":" in asked(port, "Tokyo")
        async with connect("::1", port) as connection:  # the second of its sockets
            replies = [reply async for reply in connection.ask(Chat(content="Berlin", stream=True))]
        assert isinstance(replies[-1], StreamEnd)
        assert "".join(one.content or "" for one in replies if isinstance(one, StreamChunk)) == replies[-1].content
        assert team.run("ask", "chronos", "Lima").stdout.count(":") >= 1
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as leaver:
                leaver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
                leaver.sendall(b'{"content": "Berlin", "stream": true}\n' * 10)
        assert asked(port, "Lima")
        assert team.pid("chronos") == before["chronos"]
        team.signal("chronos", signal.SIGKILL)
        seen = await until(team, lambda seen: one(seen, "chronos").pid not in (None, before["chronos"]))
        chronos = (await until(team, lambda seen: one(seen, "chronos").state == "ready")).specialists[0]
        assert chronos.last_exit is not None
        assert chronos.last_exit.cause == "killed by SIGKILL"
        assert (chronos.model, chronos.backend) == ("clock", "command")
        assert chronos.rss_bytes is not None
        assert chronos.rss_bytes > 10_000_000
        assert seen.backend.kind == "builtin", "the team's answers do not come from there"
        assert raw_output(team) == ""


@needs_node
async def test_a_hung_program_is_replaced_and_so_is_one_that_ends(tmp_path: Path) -> None:
    quick = "health_period = 0.2\nhung_after = 1.0\n"
    with Team.start(tmp_path, configuration(["node", str(EXAMPLE)], quick), roster=["chronos"]) as team:
        for what, cause in ((signal.SIGSTOP, "hung: no answer"), (signal.SIGTERM, "exited with code 0")):
            old = team.pid("chronos")
            team.signal("chronos", what)
            seen = await until(
                team, lambda seen, old=old: one(seen, "chronos").pid != old and one(seen, "chronos").state == "ready"
            )
            last_exit = one(seen, "chronos").last_exit
            assert last_exit is not None
            assert last_exit.cause.startswith(cause)


@needs_node
async def test_a_program_is_restarted_on_the_same_listener_stopped_and_never_told_to_drain(tmp_path: Path) -> None:
    with Team.start(tmp_path, configuration(["node", str(EXAMPLE)]), roster=["chronos"]) as team:
        old = team.pid("chronos")
        async with control(team) as operator:
            drained = await operator.call(Drain(names=["chronos"]))
            assert "cannot be told to refuse requests" in (drained.failed[0].error or "")
            assert team.pid("chronos") == old
            assert (await operator.call(Restart(names=["chronos"]))).ok
            await gone(old)
            assert team.pid("chronos") != old
            assert (await operator.call(Stop(names=["chronos"]))).ok
        with pytest.raises(ConnectionRefusedError):
            asked(team.port("chronos"), "Tokyo")


async def test_a_program_that_is_not_there_is_said_and_tried_again_slowly(tmp_path: Path) -> None:
    team = Team.prepare(tmp_path, configuration(["no-such-program", "x"]), roster=["chronos", "apollo"])
    with team:
        started = await anyio.to_thread.run_sync(team.run, "up", "--wait-timeout", "20")
        team.is_up = True
        assert started.returncode == 6
        chronos = one(await report(team), "chronos")
        assert chronos.state == "failed"
        why = "cannot start no-such-program: No such file or directory"
        assert f"exited with code 126: {why}" in (chronos.last_error or "")
        assert why in raw_output(team)
        assert one(await report(team), "apollo").state == "ready"


async def test_a_program_is_told_who_it_is_and_started_beside_the_file_that_names_it(tmp_path: Path) -> None:
    told = tmp_path / "told"
    command = ["sh", "-c", f"(pwd; ulimit -n; env; ls -l /proc/$$/fd) > {told}.new; mv {told}.new {told}; sleep 600"]
    team = Team.prepare(tmp_path, configuration(command), roster=["chronos"])
    team.env["NOTIFY_SOCKET"] = "/nowhere"
    with team:
        team.run("up", "--wait-timeout", "0.1")
        team.is_up = True
        wait_until(told.exists, 10, "the program was not started")
        folder, limit, *lines = told.read_text().splitlines()
        said = dict(line.split("=", 1) for line in lines if "=" in line)
        assert folder == str(team.home / ".config/chorus")
        assert int(limit) < 65_536
        assert said["LISTEN_FDS"] == "2"
        assert said["LISTEN_PID"] == str(team.pid("chronos"))
        assert said["LISTEN_FDNAMES"] == "chronos:chronos"
        assert (said["CHORUS_NAME"], said["CHORUS_AI_ID"]) == ("chronos", "chronos-ci")
        assert said["CHORUS_PORT"] == str(team.specialist("chronos")["port"])
        assert "NOTIFY_SOCKET" not in said
        descriptors = {line.split()[8] for line in lines if " -> " in line}
        assert {"0", "1", "2", "3", "4"} <= descriptors
        assert len([line for line in lines if "socket:[" in line]) == 2, "nothing else of ours is open in it"


def test_the_example_has_forty_lines() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 42
    assert os.path.exists(EXAMPLE)
