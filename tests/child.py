"""A specialist in a process of its own: started, asked, measured and ended by a test."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import psutil
from ports import free_port
from serving import Port

ROOT = Path(__file__).resolve().parents[1]


class Child(Port):
    """The process and its log, a file: a pipe that nobody reads would stop it. Its clients are those of `serving`."""

    def __init__(self, process: anyio.abc.Process, port: int, log: Path) -> None:
        super().__init__(port)
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def rss(self) -> int:
        """Resident bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    async def logged(self, pattern: str) -> str:
        """Waits until the log has it."""
        while not (found := re.search(pattern, self.log)):
            assert self.process.returncode is None, self.log
            await anyio.lowlevel.checkpoint()
        return found[0]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def end(self) -> int:
        """Its exit status, when it has ended."""
        return await self.process.wait()


@asynccontextmanager
async def child(
    folder: Path,
    backend: str = "builtin",
    *,
    descriptors: str | None = None,
    grace: float = 10.0,
    pace: float = 60.0,
    **limits: Any,
) -> AsyncGenerator[Child]:
    """`chorus specialist run apollo` with the builtin backend, or scripted_child.py with another one."""
    port = free_port()
    if backend == "builtin":
        (folder / "chorus.toml").write_text(f"[supervision]\ngrace = {grace}\n[backend]\npace = {pace}\n")
        chorus = str(Path(sys.executable).with_name("chorus"))
        code = [chorus, "--config", str(folder / "chorus.toml"), "specialist", "run", "apollo", "--port", str(port)]
    else:
        changes = json.dumps({**limits, "grace": grace})
        code = [sys.executable, str(ROOT / "tests/scripted_child.py"), backend, str(port), str(folder), changes]
    env = {
        "HOME": str(folder),
        "CHORUS_BACKEND": "builtin",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "PATH": os.defpath,
    }
    if descriptors is not None:
        code = ["sh", "-c", f'ulimit {descriptors}; exec "$@"', "sh", *code]
    log = folder / "apollo.err"
    with log.open("wb") as errors:
        process = await anyio.open_process(code, env=env, stdout=subprocess.DEVNULL, stderr=errors)
    async with process:
        one = Child(process, port, log)
        try:
            with anyio.fail_after(20):
                await one.logged("listening on port")
            yield one
        finally:
            for client in one.clients:
                await client.close()
            if process.returncode is None:
                process.kill()
