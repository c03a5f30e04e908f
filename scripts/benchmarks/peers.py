"""supervisord and circus, each with the best of its documented settings, from a virtual environment made for the run."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks.contestants import CHILD, Child, Contestant, counted, small, specialist
from benchmarks.instruments import PYTHON
from protocol import names

VERSIONS = {"supervisor": "4.3.0", "circus": "0.19.0"}  # pinned: figures of another version are other figures
CHECK_DELAY = 0.01  # of circus, in seconds; its default is 5


class Peer(Contestant):
    """A supervisor from a virtual environment of its own, told what to do by a file."""

    def __init__(self, folder: Path, child: Child, commands: Path) -> None:
        super().__init__(folder, child)
        self.commands = commands
        self._process: subprocess.Popen[bytes] | None = None

    def hearts(self) -> dict[str, int]:
        assert self._process is not None
        return {"supervisor": self._process.pid}

    def _end(self, ours: list[int]) -> None:
        super()._end(ours)
        assert self._process is not None
        self._process.wait()

    def clear(self) -> None:
        super().clear()
        if self._process is not None:
            self._process.wait()

    def _begin(self, *command: str) -> None:
        # To a file: what writes to a pipe dies with its reader, and that is not what is measured here.
        with (self.folder / "own.log").open("ab") as log:
            self._process = subprocess.Popen(self._isolated(*command), env=self.environ, stdout=log, stderr=log)

    def _asked(self, *command: str) -> list[str]:
        asked = subprocess.run(self._isolated(*command), env=self.environ, capture_output=True, text=True, check=False)
        return asked.stdout.splitlines()

    def _isolated(self, command: str, *args: str) -> list[str]:
        """-I: our own package is called supervisor too, and must not be found in the place of theirs."""
        return [str(self.commands / "python"), "-I", str(self.commands / command), *args]


class Supervisord(Peer):
    """supervisord: a child counts as started at once, and is always started again."""

    title = f"supervisord {VERSIONS['supervisor']}"
    remark = "`startsecs=0`, `autorestart=true`"

    def start(self) -> None:
        self._file = self.folder / "supervisord.conf"
        here = self.folder
        blocks = [
            f"[supervisord]\nnodaemon=true\nlogfile={here}/supervisord.log\npidfile={here}/pid\nchildlogdir={here}",
            f"[unix_http_server]\nfile={here}/s.sock",
            "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
            f"[supervisorctl]\nserverurl=unix://{here}/s.sock",
        ]
        for name, port in zip(names.ROSTER, self.ports, strict=True):
            command = small(port) if self.child == "asyncio child" else specialist(name)
            blocks.append(
                f"[program:{name}]\ncommand={' '.join(command)}\nautorestart=true\nstartsecs=0\n"
                f"redirect_stderr=true\nstdout_logfile={here}/{name}.log"
            )
        self._file.write_text("\n\n".join(blocks) + "\n")
        self._begin("supervisord", "-c", str(self._file))

    def account(self) -> str:
        lines = self._asked("supervisorctl", "-c", str(self._file), "status")
        return counted(line.split()[1] for line in lines if len(line.split()) > 1)


class Circus(Peer):
    """circus: looks after its children a hundred times a second, and holds their sockets."""

    title = f"circus {VERSIONS['circus']}"
    remark = f"`check_delay={CHECK_DELAY}`, `use_sockets`"

    def start(self) -> None:
        file, here = self.folder / "circus.ini", self.folder
        # A specialist takes sockets as systemd hands them over, from descriptor 3 on; circus puts them anywhere.
        handing = here / "specialist.sh"
        ends = f"endpoint=ipc://{here}/e.sock\npubsub_endpoint=ipc://{here}/p.sock"
        run = " ".join(specialist("$1"))
        handing.write_text(f"exec 3<&$2\nexport LISTEN_FDS=1 LISTEN_PID=$$\nexec {run}\n")
        blocks = [f"[circus]\ncheck_delay={CHECK_DELAY}\nstatsd=false\n{ends}"]
        for name, port in zip(names.ROSTER, self.ports, strict=True):
            socket = f"$(circus.sockets.{name})"
            command = f"{PYTHON} -I -S {CHILD} --fd {socket}"
            if self.child == "chorus specialist":
                command = f"/bin/bash {handing} {name} {socket}"
            blocks += [
                f"[watcher:{name}]\ncmd={command}\nuse_sockets=True\ncopy_env=True",
                f"[socket:{name}]\nhost=127.0.0.1\nport={port}",
            ]
        file.write_text("\n\n".join(blocks) + "\n")
        self._begin("circusd", str(file))

    def account(self) -> str:
        command = ("circusctl", "--endpoint", f"ipc://{self.folder}/e.sock", "status")
        return counted(line.split()[-1] for line in self._asked(*command) if ": " in line)


def install(folder: Path, packages: Mapping[str, str]) -> Path | str:
    """The folder with the commands of these packages, in these versions; or the reason why they are not there."""
    venv = folder / "peers"
    wanted = [f"{name}=={version}" for name, version in packages.items()]
    steps = [
        [PYTHON, "-m", "venv", str(venv)],
        [str(venv / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", *wanted],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            return f"pip could not install {' and '.join(wanted)}: {said[-1] if said else 'it did not say why'}"
    return venv / "bin"
