"""A running team for tests: `chorus up` in a home of its own, on free ports, taken down at the end.

    with Team.start(tmp_path, roster=["apollo", "athena"]) as team:
        assert team.run("ask", "apollo", "hello").returncode == 0

Everything is a real process. The builtin echo answers unless the configuration or the environment names a model server.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from lookalikes.ollama import USUAL, Model, OllamaLookalike, Script
from lookalikes.raw_http import Request
from ports import GATEWAY_OFFSET, free_port_base

from protocol import names

ROOT = Path(__file__).resolve().parents[1]
OURS = ("CHORUS_", "XDG_", "OLLAMA_", "FAC", "NO_COLOR", "FORCE_COLOR", "SSH_", "PYTEST_")
WITHIN = 60.0  # seconds for any one command


class Team:
    """One team. `env` is what its commands run with; `home` holds its configuration, data and state."""

    def __init__(self, home: Path, env: dict[str, str], port_base: int) -> None:
        self.home = home
        self.env = env
        self.port_base = port_base
        self.is_up = False

    @classmethod
    def start(
        cls,
        tmp_path: Path,
        config: str = "",
        roster: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        *,
        flags: Sequence[str] = (),
    ) -> Self:
        """A team that is up. `config` is TOML for its configuration file, `flags` come before `up`."""
        team = cls.prepare(tmp_path, config, roster, env)
        up = team.run(*flags, "up")
        team.is_up = True
        if up.returncode != 0:
            team.down()
            raise AssertionError(f"chorus up ended with {up.returncode}:\n{up.stdout}{up.stderr}")
        return team

    @classmethod
    def prepare(
        cls,
        tmp_path: Path,
        config: str = "",
        roster: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Self:
        """A team's home and environment; nothing is started."""
        home = tmp_path / "home"
        folder = home / ".config/chorus"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(config)
        said = tomllib.loads(config)
        backend = said.get("backend", {})
        given = dict(env or {})
        port_base = int(given.get("CHORUS_PORT_BASE", 0)) or said.get("port_base") or free_port_base(roster)
        surroundings = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
        runtime = tempfile.mkdtemp(prefix="ct-")  # short: a socket's path may have 108 bytes
        atexit.register(shutil.rmtree, runtime, ignore_errors=True)  # for those that are only prepared
        surroundings |= {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": runtime,
            "PYTHONPATH": str(ROOT),
            "CHORUS_PORT_BASE": str(port_base),
            "CHORUS_GATEWAY": "false",  # a test that is about it says so
            "CHORUS_GATEWAY_PORT": str(port_base + GATEWAY_OFFSET),
        }
        if not ({"kind", "url"} & backend.keys() or {"CHORUS_BACKEND_URL", "OLLAMA_HOST"} & given.keys()):
            surroundings["CHORUS_BACKEND"] = "builtin"
        if roster is not None:
            surroundings["CHORUS_ROSTER"] = ",".join(roster)
        return cls(home, surroundings | given, port_base)

    # -- commands -------------------------------------------------------------------------------------------------------

    def run(
        self,
        *args: str,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = WITHIN,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `chorus ARGS` to its end; without `input` its standard input is empty."""
        return subprocess.run(
            command(*args),
            env=self.env | dict(env or {}),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout,
            **({"stdin": subprocess.DEVNULL} if input is None else {"input": input}),
        )

    def popen(self, *args: str, env: Mapping[str, str] | None = None, **how: Any) -> subprocess.Popen[bytes]:
        """Starts `chorus ARGS`; `how` goes to Popen. By default stdin is empty, stdout and stderr are pipes."""
        pipes: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        return subprocess.Popen(command(*args), env=self.env | dict(env or {}), cwd=self.home, **(pipes | how))

    # -- what is known of it ----------------------------------------------------------------------------------------------

    def port(self, name: str) -> int:
        """Where a specialist listens."""
        name = names.canonical(name)
        if name in names.OFFSETS:
            return self.port_base + names.OFFSETS[name]
        return int(self.specialist(name)["port"])

    @property
    def gateway_port(self) -> int:
        """Where the gateway listens, in a team that has one."""
        return int(self.env["CHORUS_GATEWAY_PORT"])

    def status(self) -> dict[str, Any]:
        """`chorus status --json`."""
        told: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return told

    def specialist(self, name: str) -> dict[str, Any]:
        """One specialist's part of the status."""
        [found] = [one for one in self.status()["specialists"] if one["name"] == names.canonical(name)]
        return dict(found)

    def pid(self, name: str) -> int:
        return int(self.specialist(name)["pid"])

    def signal(self, name: str, which: signal.Signals) -> None:
        """Sends a signal to a specialist's process."""
        os.kill(self.pid(name), which)

    # -- the end ------------------------------------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        try:
            root = psutil.Process(self.status()["supervisor"]["pid"])
            return [root, *root.children(recursive=True)]
        except (psutil.NoSuchProcess, ValueError, TypeError, KeyError):
            return []

    def down(self) -> None:
        """Takes it down; what does not go is killed, and that is a failure. A second time does nothing."""
        if self.is_up:
            self.is_up = False
            ours = self.processes()
            for process in ours:
                try:
                    process.send_signal(signal.SIGCONT)  # a stopped one could not end
                except psutil.NoSuchProcess:
                    pass
            said = self.run("down", "--grace", "1")
            _gone, left = psutil.wait_procs(ours, timeout=5)
            for process in left:
                process.kill()
            assert not left, f"`chorus down` left {left}:\n{said.stdout}{said.stderr}"
        shutil.rmtree(self.env["XDG_RUNTIME_DIR"], ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()


class ModelServer:
    """An Ollama look-alike in a thread of its own, for tests that are not async. `script` may be replaced at any time."""

    def __init__(self, script: Script = USUAL, *, models: dict[str, Model] | None = None) -> None:
        self._lookalike = OllamaLookalike(script, models=models)
        self._lookalike.loaded.update(self._lookalike.models)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    @property
    def url(self) -> str:
        return self._lookalike.url

    @property
    def env(self) -> dict[str, str]:
        """What a team is started with to ask this server."""
        return {"CHORUS_BACKEND": "ollama", "CHORUS_BACKEND_URL": self.url}

    @property
    def asked(self) -> list[Request]:
        return self._lookalike.asked()

    def use(self, script: Script) -> None:
        self._lookalike.script = script
        self._lookalike.steps = asyncio.Semaphore(0)

    @contextmanager
    def absent(self) -> Generator[None]:
        """Nobody listens there until the end of the block."""
        asyncio.run_coroutine_threadsafe(self._lookalike.refuse(), self._loop).result(10)
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(self._lookalike.listen(), self._loop).result(10)

    def step(self) -> None:
        """Lets one event go of an answer that is stepped."""
        self._loop.call_soon_threadsafe(self._lookalike.steps.release)

    def let_go(self) -> None:
        """Lets those go on that the script holds."""
        self._loop.call_soon_threadsafe(self._lookalike.let_go)

    def wait_asked(self, count: int = 1, within: float = 60.0) -> None:
        """Waits until so many questions have come."""
        wait_until(lambda: len(self.asked) >= count, within, "the model server was not asked")

    def wait_left(self, within: float) -> None:
        """Waits until whoever asked last has gone before its answer was complete."""
        wait_until(self.asked[-1].gone.is_set, within, "the last question was not withdrawn")

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        async with self._lookalike:
            self._ready.set()
            await self._over.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)


def wait_until(is_true: Callable[[], bool], within: float, otherwise: str) -> None:
    """Waits for a condition that has no event in this process."""
    until = time.monotonic() + within
    while not is_true():
        assert time.monotonic() < until, f"{otherwise} within {within:g} s"
        time.sleep(0.01)


def command(*args: str) -> list[str]:
    """The argument list of `chorus ARGS`. -P: like the installed command, it does not look into the folder it is called in."""
    return [sys.executable, "-P", "-m", "supervisor.cli", *args]
