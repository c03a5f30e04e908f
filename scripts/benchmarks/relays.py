"""What stands between a specialist and a browser: our gateway, and the same job by starlette, sse-starlette and uvicorn."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Self

import msgspec

from benchmarks.instruments import PYTHON, ROOT, free_port, pin, wait_until
from benchmarks.team import surroundings
from protocol.settings import Colleague, Gateway, GatewayConfig, Limits

HERE = Path(__file__).parent
VERSIONS = {"starlette": "1.10.0", "sse-starlette": "3.7.0", "uvicorn[standard]": "0.54.0", "msgspec": "0.22.0"}
CORE = 0  # of the relay; everything else has another one, where there is one
MANY = 1_000_000  # a limit that is not what is measured


class Relay:
    """A server in a process of its own, in front of the specialists on these ports, for the length of a block.

    It has a core for itself; None lets the kernel choose.
    """

    title = ""

    def __init__(self, folder: Path, roster: dict[str, int], core: int | None = CORE) -> None:
        self.core = core
        self.folder = folder / f"{type(self).__name__.lower()}-{len(list(folder.iterdir()))}"
        self.folder.mkdir()
        self.roster = roster
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        with (self.folder / "own.log").open("wb") as log:
            environ = surroundings(self.folder, self.port)
            self._process = subprocess.Popen(self.command(), env=environ, stdout=log, stderr=log, cwd=ROOT)
        if self.core is not None:
            pin(self._process.pid, self.core)
        wait_until(self._is_listening)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _is_listening(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            sys.exit(f"{self.title} ended: {(self.folder / 'own.log').read_text()[-2000:]}")
        with socket.socket() as asked:
            return asked.connect_ex(("127.0.0.1", self.port)) == 0


class Chorus(Relay):
    """The gateway by itself: no supervisor is there to tell it of the team, so it knows it from its configuration."""

    title = "chorus gateway"

    def command(self) -> list[str]:
        config = GatewayConfig(
            places=[("127.0.0.1", self.port)],
            settings=Gateway(streams=MANY, in_flight=MANY, requests_per_minute=MANY),
            limits=Limits(),
            roster=[Colleague(name, "127.0.0.1", port) for name, port in self.roster.items()],
            grace=1.0,
            retention_days=1.0,
            allowed_uids=[],
            socket=str(self.folder / "no-supervisor.sock"),
            data_dir=str(self.folder),
            state_dir=str(self.folder),
        )
        file = self.folder / "config.json"
        file.write_bytes(msgspec.json.encode(config))
        return [PYTHON, "-P", str(HERE / "relay_chorus.py"), str(file)]


class Starlette(Relay):
    title = "starlette, sse-starlette, uvicorn"

    def __init__(self, folder: Path, roster: dict[str, int], commands: Path) -> None:
        super().__init__(folder, roster)
        self.commands = commands

    def command(self) -> list[str]:
        [port] = self.roster.values()
        return [str(self.commands / "python"), "-I", str(HERE / "relay_starlette.py"), str(self.port), str(port)]
