"""What operators ask of the whole fleet, where it takes longer than they are used to."""

from __future__ import annotations

import subprocess
from pathlib import Path

import anyio
import pytest
from keeping import one, report, until
from team import Team

from protocol.client import connect
from protocol.errors import Draining
from protocol.messages import Chat, StreamChunk, StreamEnd

IMPATIENT = """
[backend]
kind = "builtin"
pace = 20.0
[supervision]
grace = 0.2
"""
LONG = "one two three four five " * 8


async def the_end(team: Team, *command: str) -> object:
    """How an answer of apollo ends that is under way when this command is given."""
    async with connect("127.0.0.1", team.port("apollo")) as connection:
        replies = connection.ask(Chat(content=LONG, stream=True))
        while not isinstance(await anext(replies), StreamChunk):
            pass
        done = team.popen(*command, stderr=subprocess.DEVNULL)
        try:
            with anyio.fail_after(30):
                return [reply async for reply in replies][-1]
        finally:
            assert await anyio.to_thread.run_sync(done.wait, 30) == 0
            if done.stdout:
                done.stdout.close()


@pytest.mark.parametrize("command", [("stop", "apollo", "--grace", "30"), ("down", "--grace", "30")])
async def test_a_grace_above_the_configured_one_is_honoured(tmp_path: Path, command: tuple[str, ...]) -> None:
    with Team.start(tmp_path, IMPATIENT, roster=["apollo", "athena"]) as team:
        last = await the_end(team, *command)
        assert isinstance(last, StreamEnd)
        assert last.done_reason == "stop"
        if command[0] == "stop":
            seen = await until(team, lambda seen: one(seen, "apollo").state == "stopped")
            assert one(seen, "athena").state == "ready"


@pytest.mark.parametrize("command", [("stop", "apollo"), ("down",)])
async def test_without_one_the_configured_grace_holds(tmp_path: Path, command: tuple[str, ...]) -> None:
    with Team.start(tmp_path, IMPATIENT, roster=["apollo", "athena"]) as team:
        with pytest.raises(Draining) as raised:
            await the_end(team, *command)
        assert raised.value.partial


async def test_a_grace_that_was_raised_by_a_reload_holds_for_those_that_run(tmp_path: Path) -> None:
    with Team.start(tmp_path, IMPATIENT, roster=["apollo", "athena"]) as team:
        before = one(await report(team), "apollo").pid
        file = team.home / ".config/chorus/config.toml"
        file.write_text(IMPATIENT.replace("0.2", "30"))
        assert team.run("reload").returncode == 0
        assert one(await report(team), "apollo").pid == before
        assert isinstance(await the_end(team, "stop", "apollo"), StreamEnd)
