"""The gateway's process with nobody who keeps it: a test starts it, kills it, and starts the next one on the same socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from team import ROOT

from protocol.settings import GatewayConfig

WITHIN = 60.0
PROGRAM = """
import logging, socket, sys, msgspec
from protocol.settings import GatewayConfig
from supervisor.gateway import process
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s")
process.run(msgspec.json.decode(sys.argv[2], type=GatewayConfig), [socket.socket(fileno=int(sys.argv[1]))])
"""


class BareGateway:
    """`process` is the one that was started last. Used as a context manager; it ends what it started."""

    def __init__(self, config: GatewayConfig, log: Path, env: Mapping[str, str] | None = None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._config = msgspec.structs.replace(config, places=[("127.0.0.1", self.port)])
        self._log = log
        self._env = os.environ | {"PYTHONPATH": str(ROOT)} | dict(env or {})
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self._started[-1]

    def start(self) -> None:
        """One more. Whoever connects meanwhile waits in the socket's queue."""
        number = self._listener.fileno()
        with self._log.open("ab") as log:
            command = [sys.executable, "-P", "-c", PROGRAM, str(number), msgspec.json.encode(self._config).decode()]
            self._started.append(subprocess.Popen(command, pass_fds=[number], env=self._env, stdout=log, stderr=log))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(WITHIN)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._started:
            one.send_signal(signal.SIGKILL)
            one.wait(WITHIN)
        self._listener.close()
