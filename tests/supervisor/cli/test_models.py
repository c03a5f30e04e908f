"""`chorus models`: what a model server has, why there is none, and a pull; against a look-alike over a real socket."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from lookalikes.ollama import Model as Installed
from lookalikes.ollama import OllamaLookalike, Script
from team import Team

from supervisor.checkup.model_server import Model
from supervisor.cli.models import where_loaded


@pytest.fixture
async def server() -> AsyncIterator[OllamaLookalike]:
    async with OllamaLookalike(models={"tiny:latest": Installed(), "big:7b": Installed()}) as server:
        server.loaded.add("tiny:latest")
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Team:
    """Nothing runs: what is configured counts."""
    return Team.prepare(tmp_path, roster=["apollo", "athena"], config='[specialists.athena]\nmodel = "gone"\n')


async def chorus(
    team: Team, *args: str, url: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command while this loop goes on serving."""
    said = {"CHORUS_BACKEND": "auto", **({"CHORUS_BACKEND_URL": url} if url else {}), **(env or {})}
    return await anyio.to_thread.run_sync(lambda: team.run(*args, env=said))


async def test_the_table_says_what_is_loaded_and_who_uses_it(server: OllamaLookalike, home: Team) -> None:
    done = await chorus(home, "models", url=server.url, env={"CHORUS_MODEL": "tiny"})
    assert done.returncode == 0
    header, *rows = (line.split() for line in done.stdout.splitlines())
    assert header == ["NAME", "SIZE", "LOADED", "CONTEXT", "USED", "BY"]
    assert rows == [["big:7b", "1", "B", "-", "-", "-"], ["tiny:latest", "1", "B", "yes", "4096", "apollo"]]
    assert "gone:latest is not there, which athena should use  do: chorus models pull gone:latest" in done.stderr


async def test_json_is_one_versioned_object(server: OllamaLookalike, home: Team) -> None:
    done = await chorus(home, "models", "--json", url=server.url, env={"CHORUS_MODEL": "tiny"})
    told = json.loads(done.stdout)
    assert (told["version"], told["url"], told["kind"]) == (1, server.url, "ollama")
    big, tiny = told["models"]
    assert (big["loaded"], tiny["loaded"], tiny["context"], tiny["used_by"]) == (False, True, 4096, ["apollo"])
    assert told["missing"] == [{"name": "gone:latest", "used_by": ["athena"]}]


@pytest.mark.parametrize(
    ("size", "vram", "said"), [(100, 100, "GPU"), (100, 0, "CPU"), (100, 43, "43% GPU"), (None, None, "yes")]
)
def test_the_processor_is_named(size: int | None, vram: int | None, said: str) -> None:
    assert where_loaded(Model(name="m", size=size, size_vram=vram)) == said


# -- no model server ----------------------------------------------------------------------------------------------------


async def absent(team: Team, url: str, **env: str) -> tuple[int, str, str]:
    """The exit code, the cause and the remedy of a model server that is not there."""
    done = await chorus(team, "models", "--json", url=url, env=env)
    error = json.loads(done.stdout)["error"]
    assert f"error: {error['message']}\n  do: {error['hint']}\n" == done.stderr
    return done.returncode, error["code"], error["hint"]


async def test_one_that_is_not_installed(server: OllamaLookalike, home: Team, tmp_path: Path) -> None:
    await server.refuse()
    code, cause, remedy = await absent(home, server.url, PATH=str(tmp_path))
    assert (code, cause) == (5, "not_installed")
    assert "https://ollama.com/download" in remedy


async def test_one_that_does_not_run(server: OllamaLookalike, home: Team, tmp_path: Path) -> None:
    await server.refuse()
    (tmp_path / "ollama").write_text("#!/bin/sh\n")
    (tmp_path / "ollama").chmod(0o755)
    code, cause, remedy = await absent(home, server.url, PATH=str(tmp_path))
    assert (code, cause) == (5, "not_running")
    assert remedy in ("ollama serve", "sudo systemctl start ollama")


async def test_one_on_another_host(home: Team) -> None:
    # A name that no resolver has (RFC 6761): whatever answers for other hosts in some networks does not for this one.
    code, cause, remedy = await absent(home, "http://models.invalid:11434")
    assert (code, cause) == (5, "other_host")
    assert "OLLAMA_HOST=0.0.0.0" in remedy
    assert "CHORUS_BACKEND_URL" in remedy


async def test_one_without_a_model(server: OllamaLookalike, home: Team) -> None:
    server.models.clear()
    server.loaded.clear()
    assert await absent(home, server.url) == (5, "no_model", "chorus models pull llama3.2")


async def test_something_else_that_answers_there(server: OllamaLookalike, home: Team) -> None:
    server.script = Script(look_garbage=b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    code, cause, _ = await absent(home, server.url)
    assert (code, cause) == (5, "not_one")


def test_the_builtin_backend_has_no_models(home: Team) -> None:
    done = home.run("models", env={"CHORUS_BACKEND": "builtin"})
    assert (done.returncode, done.stdout) == (5, "")
    assert "backend.kind is builtin" in done.stderr


# -- pull ---------------------------------------------------------------------------------------------------------------


async def test_a_pull_says_each_change_once_where_there_is_no_terminal(server: OllamaLookalike, home: Team) -> None:
    done = await chorus(home, "models", "pull", "small", url=server.url)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [
        "pulling manifest",
        "pulling abababababab (1000 B)",
        "verifying sha256 digest",
        "writing manifest",
        "success",
        "small is there",
    ]
    assert "small:latest" in server.models


async def test_a_pull_as_json_is_the_servers_events(server: OllamaLookalike, home: Team) -> None:
    done = await chorus(home, "models", "pull", "--json", "small", url=server.url)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0] == {"status": "pulling manifest"}
    assert events[2]["completed"] == 250
    assert events[-1] == {"status": "success"}
    assert done.stderr == ""


async def test_a_failure_after_a_200_is_exit_5_with_its_sentence(server: OllamaLookalike, home: Team) -> None:
    server.script = Script(pull_error="pull model manifest: file does not exist")
    done = await chorus(home, "models", "pull", "nosuch", url=server.url)
    assert done.returncode == 5
    assert "error: pull model manifest: file does not exist\n" in done.stderr


async def test_a_pull_draws_a_bar_on_a_terminal(server: OllamaLookalike, home: Team) -> None:
    ours, theirs = pty.openpty()
    env = {"CHORUS_BACKEND": "auto", "CHORUS_BACKEND_URL": server.url, "TERM": "xterm-256color"}
    process = home.popen("models", "pull", "small", env=env, stderr=theirs)
    os.close(theirs)
    seen = await anyio.to_thread.run_sync(_read_to_the_end, ours)
    assert await anyio.to_thread.run_sync(process.wait) == 0
    assert process.stdout is not None
    process.stdout.close()
    assert "━" in seen.decode()
    assert b"small is there" in seen


async def test_ctrl_c_stops_a_pull_and_says_that_it_goes_on(server: OllamaLookalike, home: Team) -> None:
    held = anyio.Event()

    async def hold(request: object, reply: object) -> None:
        held.set()
        await anyio.sleep_forever()

    server.answer = hold
    env = {"CHORUS_BACKEND": "auto", "CHORUS_BACKEND_URL": server.url}
    process = home.popen("models", "pull", "small", env=env)
    with anyio.fail_after(20):
        await held.wait()
    process.send_signal(signal.SIGINT)
    out, err = await anyio.to_thread.run_sync(lambda: process.communicate(timeout=10))
    assert (process.returncode, out) == (130, b"")
    assert err.strip() == b"stopped; chorus models pull small goes on from here"


def _read_to_the_end(terminal: int) -> bytes:
    seen = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # EIO: nobody has the other end any more
            data = b""
        if not data:
            os.close(terminal)
            return seen
        seen += data
