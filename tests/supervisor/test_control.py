from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from keeping import control, control_path, one, report, until
from team import Team

from protocol.control import (
    Drain,
    Progress,
    Restart,
    Route,
    Snapshot,
    Start,
    Status,
    Stop,
    TeamChat,
    TeamEvent,
    Transition,
    Watch,
)
from protocol.errors import NotFound

ROSTER = ["apollo", "athena", "metis"]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """One team for all: every test leaves it as it was."""
    with Team.start(tmp_path_factory.mktemp("team"), roster=ROSTER) as started:
        yield started


def raw(team: Team, *lines: bytes) -> list[dict[str, Any]]:
    """The answers to lines that are said as they are, one for each."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(10)
        stream.connect(os.fspath(control_path(team)))
        stream.sendall(b"".join(line + b"\n" for line in lines))
        with stream.makefile("rb") as answers:
            return [json.loads(answers.readline()) for _ in lines]


def test_status_echoes_its_request_id(team: Team) -> None:
    [answer] = raw(team, b'{"type":"status","request_id":"s1"}')
    assert answer["type"] == "result"
    assert answer["request_id"] == "s1"
    assert [entry["name"] for entry in answer["status"]["specialists"]] == ROSTER


def test_mistakes_are_answered_and_the_connection_goes_on(team: Team) -> None:
    answers = raw(
        team,
        b"{",
        b"hello",
        b'{"request_id":4}',
        b'{"type":"dance","request_id":5}',
        b'{"type":"stop","request_id":6,"names":"apollo"}',
        b"[1]",
        b'{"type":"status"}',
    )
    codes = [answer.get("code") for answer in answers]
    assert codes[:2] == ["bad_json", "bad_json"]
    assert codes[2:5] == ["bad_request", "unknown_type", "bad_request"]
    assert [answer.get("request_id") for answer in answers[2:5]] == [4, 5, 6]
    assert "known are status, watch" in answers[3]["error"]
    assert codes[5] in ("bad_request", "bad_json")
    assert answers[6]["ok"]


def test_a_line_that_is_too_long_is_refused_and_the_connection_goes_on(team: Team) -> None:
    answers = raw(team, b'{"type":"' + b"x" * 1_100_000 + b'"}', b'{"type":"status"}')
    assert answers[0]["code"] == "line_too_long"
    assert answers[1]["ok"]


async def test_an_unknown_name_comes_with_the_nearest_one(team: Team) -> None:
    async with control(team) as operator:
        with pytest.raises(NotFound, match="did you mean apollo"):
            await operator.call(Stop(names=["apolo"]))
        with pytest.raises(NotFound, match="the team is apollo, athena, metis"):
            await operator.call(Stop(names=["zzzzzz"]))


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        (["apollo-ai"], ["apollo"]),
        (["athena-ci", "apollo"], ["apollo", "athena"]),
        (["a*"], ["apollo", "athena"]),
        (["all"], ROSTER),
        (["metis", "metis"], ["metis"]),
        ([], []),
    ],
)
async def test_names_come_in_every_spelling(team: Team, asked: list[str], meant: list[str]) -> None:
    async with control(team) as operator:
        status = (await operator.call(Status(names=asked))).status
    assert status is not None
    assert [entry.name for entry in status.specialists] == meant


async def test_a_watch_tells_every_change_in_order(team: Team) -> None:
    async with control(team) as watching, control(team) as operator:
        changes = watching.ask(Watch(request_id="w"))
        first = await anext(changes)
        assert isinstance(first, Snapshot)
        assert first.request_id == "w"
        await operator.call(Restart(names=["metis"]))
        seen: list[Transition] = []
        with anyio.fail_after(10):
            while not seen or seen[-1].to != "ready":
                change = await anext(changes)
                assert isinstance(change, Transition)
                seen.append(change)
    assert [change.seq for change in seen] == list(range(first.seq + 1, first.seq + 1 + len(seen)))
    assert {change.name for change in seen} == {"metis"}
    assert seen[0].cause == "asked to restart"


async def test_a_command_tells_its_progress_and_then_one_result(team: Team) -> None:
    old = one(await report(team), "metis").pid
    async with control(team) as operator:
        answers = [answer async for answer in operator.ask(Restart(names=["metis"], request_id="r"))]
    *progress, result = answers
    assert all(isinstance(answer, Progress) and answer.name == "metis" for answer in progress)
    assert all(answer.request_id == "r" for answer in answers)
    [outcome] = result.changed  # type: ignore[union-attr]
    assert outcome.old_pid == old
    assert outcome.new_pid not in (old, None)
    assert outcome.down_ms is not None


async def test_stop_drain_and_start_say_what_became_of_them(team: Team) -> None:
    async with control(team) as operator:
        assert (await operator.call(Stop(names=["metis"]))).ok
        drained = await operator.call(Drain(names=["metis"]))
        assert [outcome.error for outcome in drained.failed] == ["metis is not running"]
        assert (await operator.call(Start(names=["metis"]))).ok
        assert (await operator.call(Drain(names=["metis"]))).ok
        assert one(await report(team), "metis").state == "draining"
        assert (await operator.call(Start(names=["metis"]))).ok
    assert one(await report(team), "metis").state == "ready"


async def test_a_rolling_restart_goes_on_when_its_client_leaves(team: Team) -> None:
    before = {entry.name: entry.pid for entry in (await report(team)).specialists}
    async with control(team) as operator:
        async for answer in operator.ask(Restart(rolling=True)):
            assert isinstance(answer, Progress)
            break
    with anyio.fail_after(20):
        while True:
            after = (await report(team)).specialists
            if all(entry.pid != before[entry.name] and entry.state == "ready" for entry in after):
                break


async def test_a_rolling_restart_goes_one_by_one(team: Team) -> None:
    async with control(team) as operator:
        answers = [answer async for answer in operator.ask(Restart(rolling=True))]
    order = [answer.name for answer in answers if isinstance(answer, Progress)]
    assert [name for at, name in enumerate(order) if at == 0 or order[at - 1] != name] == ROSTER


async def test_of_contradictory_commands_the_last_one_holds_and_the_others_hear_of_it(team: Team) -> None:
    results: dict[str, bool] = {}

    async def ask(key: str, request: Stop | Start) -> None:
        async with control(team) as operator:
            results[key] = (await operator.call(request)).ok

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(ask, f"stop {number}", Stop(names=["metis"]))
                group.start_soon(ask, f"start {number}", Start(names=["metis"]))
    assert len(results) == 20
    async with control(team) as operator:
        assert (await operator.call(Start(names=["metis"]))).ok
    assert one(await report(team), "metis").state == "ready"


async def test_a_team_chat_ends_with_a_result(team: Team) -> None:
    async with control(team) as operator:
        with anyio.fail_after(20):
            answers = [answer async for answer in operator.ask(TeamChat(content="hello", request_id="t"))]
    assert all(isinstance(answer, TeamEvent) for answer in answers[:-1])
    assert len(answers) > len(ROSTER)
    assert answers[-1].ok  # type: ignore[union-attr]


async def test_a_client_that_never_reads_holds_up_nobody(team: Team) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(os.fspath(control_path(team)))
        deaf.setblocking(False)
        try:
            while True:
                deaf.sendall(b'{"type":"status"}\n' * 100)
        except BlockingIOError:
            pass  # its answers fill every buffer on the way
        async with control(team) as operator:
            with anyio.fail_after(10):
                assert (await operator.call(Restart(names=["metis"]))).ok


async def test_watchers_that_left_are_forgotten_though_nothing_changes(team: Team) -> None:
    supervisor = psutil.Process((await report(team)).supervisor.pid)
    before = supervisor.num_fds()
    for _ in range(20):
        async with control(team) as watching:
            await anext(watching.ask(Watch()))
    with anyio.fail_after(15):
        while supervisor.num_fds() > before + 2:
            await report(team)


async def test_a_watcher_that_only_asks_nothing_more_is_still_told(team: Team) -> None:
    stream = await anyio.connect_unix(control_path(team))
    async with stream:
        await stream.send(b'{"type":"watch"}\n')
        await stream.send_eof()
        told = await stream.receive()
        assert b'"snapshot"' in told
        async with control(team) as operator:
            await operator.call(Restart(names=["metis"]))
        with anyio.fail_after(10):
            while b'"ready"' not in (told := await stream.receive()):
                pass


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_though_the_mode_would_let_them_in(team: Team) -> None:
    path = control_path(team)
    folder = Path(team.env["XDG_RUNTIME_DIR"])
    modes = {place: place.stat().st_mode for place in (path, path.parent, folder)}
    ask = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); "
        "s.connect(sys.argv[1]); print(s.recv(4096).decode())"
    )
    try:
        for place in modes:
            place.chmod(0o777)
        said = subprocess.run([sys.executable, "-c", ask, str(path)], capture_output=True, text=True, timeout=20)
    finally:
        for place, mode in modes.items():
            place.chmod(mode)
    assert '"forbidden"' in said.stdout, said.stderr


async def test_the_journal_can_be_read_when_the_team_is_down(tmp_path: Path) -> None:
    with Team.start(tmp_path, roster=["apollo"]) as team:
        await until(team, lambda seen: one(seen, "apollo").state == "ready")
        team.down()
        told = team.run("status", "--json")
    assert told.returncode == 3
    assert json.loads(told.stdout)["specialists"][0]["state"] == "stopped"


async def test_orchestration_rules_are_kept_told_and_an_event(team: Team) -> None:
    wanted = {"routing_rules": [{"pattern": "plan", "specialists": ["metis-ai"], "strategy": "best"}]}
    async with control(team) as operator, control(team) as watching:
        changes = watching.ask(Watch())
        assert isinstance(await anext(changes), Snapshot)
        before = await operator.call(Route())
        assert before.rules is not None
        assert before.rules["routing_rules"] == []
        told = await operator.call(Route(rules=wanted))
        assert told.ok
        assert told.rules is not None
        assert told.rules["routing_rules"] == wanted["routing_rules"]
        with anyio.fail_after(10):
            change = await anext(changes)
        assert isinstance(change, Transition)
        assert change.cause == "the orchestration rules were replaced: 1 rule"
        assert team.run("ask", "a plan").stderr.startswith("metis answers: rule 1 (plan)")
        assert (await operator.call(Route(rules={}))).ok


async def test_orchestration_rules_with_mistakes_change_nothing(team: Team) -> None:
    wrong = {"routing_rules": [{"pattern": "(", "specialists": ["metiss"]}], "retry": True}
    async with control(team) as operator:
        told = await operator.call(Route(rules=wrong))
        assert not told.ok
        paths = {"routing_rules[0].pattern", "routing_rules[0].specialists[0]", "retry"}
        assert {one.path for one in told.mistakes} == paths
        assert told.rules is not None
        assert told.rules["routing_rules"] == []
