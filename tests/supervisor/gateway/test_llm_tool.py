"""The `llm` tool, configured as docs/gateway.md says, without a plug-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
from gatewaying import ServedGateway, documented, gateway
from scripted import ScriptedBackend

from daemon.backends import Backend
from protocol.errors import ModelError


async def llm(folder: Path, served: ServedGateway, *args: str) -> subprocess.CompletedProcess[bytes]:
    """Runs `llm ARGS`."""
    (folder / "extra-openai-models.yaml").write_text(documented("yaml", served.url))
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "LLM_USER_PATH": str(folder)}
    command = [sys.executable, "-m", "llm", *args]
    with anyio.fail_after(60):
        return await anyio.run_process(command, env=env, cwd=folder, stdin=subprocess.DEVNULL, check=False)


def team_of(*script: str | Exception) -> dict[str, Backend]:
    return {"apollo": ScriptedBackend(*script), "metis": ScriptedBackend("me too")}


async def test_it_streams_an_answer(tmp_path: Path) -> None:
    backend = ScriptedBackend("Hel", "lo")
    async with gateway(tmp_path, apollo=backend) as served:
        done = await llm(tmp_path, served, "-m", "apollo", "-s", "Be brief.", "hi")
        logged = await llm(tmp_path, served, "logs", "--json", "-n", "1")
    assert (done.returncode, done.stdout) == (0, b"Hello\n"), done.stderr
    assert backend.prompts[0].system.endswith("\n\nBe brief.")
    [entry] = json.loads(logged.stdout)
    assert (entry["response"], entry["input_tokens"], entry["output_tokens"]) == ("Hello", 7, 2)


async def test_it_goes_on_with_its_conversation(tmp_path: Path) -> None:
    backend = ScriptedBackend("Hello")
    async with gateway(tmp_path, apollo=backend) as served:
        await llm(tmp_path, served, "-m", "apollo", "one")
        await llm(tmp_path, served, "-c", "two")
    assert [turn.content for turn in backend.prompts[1].turns] == ["one", "Hello", "two"]


async def test_it_asks_without_streaming_and_the_team_is_a_model(tmp_path: Path) -> None:
    async with gateway(tmp_path, **team_of("me")) as served:
        alone = await llm(tmp_path, served, "-m", "apollo", "--no-stream", "hi")
        together = await llm(tmp_path, served, "-m", "team", "--no-stream", "hi")
    assert alone.stdout == b"me\n", alone.stderr
    assert sorted(together.stdout.decode().split("\n\n")) == ["\n", "## apollo", "## metis", "me", "me too"]


async def test_a_failure_is_told_with_its_sentence_behind_what_had_arrived(tmp_path: Path) -> None:
    async with gateway(tmp_path, **team_of("Hel", ModelError("it broke: see the log"))) as served:
        done = await llm(tmp_path, served, "-m", "apollo", "hi")
    assert done.returncode == 1
    assert done.stdout.startswith(b"Hel")
    assert b"it broke: see the log" in done.stderr
