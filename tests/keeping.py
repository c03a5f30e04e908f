"""Small real surroundings for tests of the fleet: a fork server, a keeper on it, the control socket of a team.

A specialist's `role` is Python that its process runs first, so that a test can have it crash, hang or spin.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec
import psutil
from ports import free_port
from team import ROOT, Team

from protocol.client import ControlConnection, connect, connect_control
from protocol.control import BackendStatus, Entry, Snapshot, SpecialistStatus, Status, StatusReport, Transition, Watch
from protocol.messages import Health, HealthResponse
from protocol.settings import ChildConfig, RestartPolicy, SpecialistConfig, Supervision
from supervisor import config as configuration
from supervisor.fleet import calls
from supervisor.fleet.calls import Exited, Living
from supervisor.fleet.copies import Copies
from supervisor.fleet.inbox import Adopted
from supervisor.fleet.keeper import Keeper
from supervisor.fleet.lifecycle import State
from supervisor.fleet.link import Link, connected
from supervisor.fleet.marks import Marks
from supervisor.fleet.registry import Registry, newcomer

BACKEND = BackendStatus("builtin", None, "ready", None)

LAUNCH = """
import sys
from pathlib import Path
import daemon.process
run = daemon.process.run
def first(config, listeners):
    exec(config.role)
    run(config, listeners)
daemon.process.run = first
from supervisor.fleet.launch import launch
launch(*map(Path, sys.argv[1:4]))
"""

# Holds the interpreter for ever, and its lock: this match takes 2**40 steps inside one C function.
SPIN_ON_WINCH = """
import signal
signal.signal(signal.SIGWINCH, lambda *_: __import__('re').match('(a+)+$', 'a' * 40 + 'b'))
"""


def specialist(folder: Path, name: str = "apollo", role: str = "", **said: Any) -> SpecialistConfig:
    """The configuration of a specialist on a free port, with the builtin backend."""
    environ = {"HOME": str(folder), "CHORUS_BACKEND": "builtin"}
    loaded = configuration.load({"roster": [name]}, None, environ)
    config = configuration.resolve(loaded, name)
    said = {"port": free_port(), "addresses": ["127.0.0.1"], "grace": 2.0} | said
    return msgspec.structs.replace(config, role=role, log_dir=str(folder / "logs"), **said)


@contextmanager
def fork_server(folder: Path, first: str = "") -> Iterator[Path]:
    """A fork server that runs `first` before anything; yields its socket. It is gone afterwards, with all it had started."""
    short = Path(tempfile.mkdtemp(prefix="ct-"))  # a socket's path may have 108 bytes
    path = short / "f.fork"
    (folder / "logs").mkdir(exist_ok=True)
    call = [sys.executable, "-c", first + LAUNCH, str(path), str(folder / "logs"), str(folder)]
    subprocess.run(call, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=30)
    try:
        yield path
    finally:
        end_fork_server(path)
        shutil.rmtree(short)


def end_fork_server(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.settimeout(20)
            link.connect(os.fspath(path))
            link.sendall(calls.line(calls.Quit(number=1)))
            while link.recv(65536):
                pass
        except OSError:
            pass  # it is gone already, or goes while we ask


class Kept:
    """A keeper with all it stands on."""

    def __init__(self, keeper: Keeper, registry: Registry, link: Link, living: Living) -> None:
        self.keeper = keeper
        self.registry = registry
        self.link = link
        self.living = living

    @property
    def status(self) -> Entry:
        return self.registry[self.keeper.name]

    async def until(self, holds: Callable[[Entry], bool], within: float = 60.0) -> Entry:
        """The entry in the registry, as soon as something holds of it."""
        with anyio.fail_after(within):
            await self.registry.wait_for(lambda: holds(self.status))
        return self.status

    async def until_state(self, *states: State, within: float = 60.0) -> Entry:
        return await self.until(lambda one: one.state in {state.value for state in states}, within)

    async def new_pid(self, old: int | None, within: float = 60.0) -> int:
        """The pid of a process that answers and is not the old one."""
        found = await self.until(lambda one: one.state == "ready" and one.pid != old, within)
        assert found.pid is not None
        return found.pid


@asynccontextmanager
async def keeping(
    path: Path,
    *configs: ChildConfig,
    policy: RestartPolicy = "always",
    brake: int = 3,
    **said: Any,
) -> AsyncIterator[list[Kept]]:
    """Keepers of these on the fork server at `path`."""
    settings = msgspec.structs.replace(Supervision(grace=2.0, restart=policy), **said)
    folder = Path(configs[0].log_dir or "").parent
    registry = Registry(folder / "registry.json", [newcomer(one) for one in configs], BACKEND)
    keepers: dict[str, Keeper] = {}

    def on_exit(exit_: Exited) -> None:
        keepers[exit_.name].tell(exit_)

    async with AsyncExitStack() as stack:
        copies = stack.enter_context(closing(Copies()))
        link = await stack.enter_async_context(connected(path, on_exit, copies))
        group = await stack.enter_async_context(anyio.create_task_group())
        limiter = anyio.CapacityLimiter(brake)
        mark = Marks(folder / "logs").write
        for config in configs:
            keepers[config.name] = Keeper(config, settings, link, registry, limiter, mark)
            group.start_soon(keepers[config.name].run)
        living = await group.start(link.run)
        for process in living.processes:
            keepers[process.name].tell(Adopted(process))
        yield [Kept(keeper, registry, link, living) for keeper in keepers.values()]
        group.cancel_scope.cancel()


async def ask_health(port: int) -> HealthResponse:
    async with connect("127.0.0.1", port) as connection:
        answer = await connection.call(Health())
    assert isinstance(answer, HealthResponse)
    return answer


def forked_by(server: psutil.Process) -> list[psutil.Process]:
    """The children of a fork server, zombies too, without the one that is nobody yet."""

    def is_somebody(child: psutil.Process) -> bool:
        try:
            return not " ".join(child.cmdline()).startswith((calls.SPARE, calls.FORK_SERVER))
        except psutil.ZombieProcess:
            return True
        except psutil.NoSuchProcess:
            return False

    return [child for child in server.children() if is_somebody(child)]


def wait_gone(pid: int, within: float = 60.0) -> None:
    """Returns when a process has ended; a zombie has, whoever is slow to reap it."""
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([ended], [], [], within)[0], f"process {pid} goes on"
    finally:
        os.close(ended)


def wait_reaped(pid: int, within: float = 60.0) -> None:
    """Returns when its parent has taken note of a process's end."""
    deadline = time.monotonic() + within
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline, f"process {pid} is not reaped"


async def gone(pid: int, within: float = 60.0) -> None:
    """Returns when a process has ended."""
    with anyio.fail_after(within):
        try:
            ended = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            await anyio.wait_readable(ended)
        finally:
            os.close(ended)


# -- a whole team ---------------------------------------------------------------------------------------------------------


def control_path(team: Team) -> Path:
    return Path((team.home / ".local/state/chorus/socket").read_text().strip())


@asynccontextmanager
async def control(team: Team) -> AsyncIterator[ControlConnection]:
    async with connect_control(control_path(team)) as connection:
        yield connection


async def report(team: Team) -> StatusReport:
    async with control(team) as connection:
        result = await connection.call(Status())
    assert result.status is not None
    return result.status


async def until(team: Team, holds: Callable[[StatusReport], bool], within: float = 60.0) -> StatusReport:
    """The state of the team, as soon as something holds of it; looked at after every change."""
    with anyio.fail_after(within):
        async with control(team) as connection:
            async for change in connection.ask(Watch()):
                if isinstance(change, Snapshot | Transition) and holds(seen := await report(team)):
                    return seen
    raise AssertionError("the supervisor ended")


def all_ready(seen: StatusReport) -> bool:
    return all(one.state == "ready" for one in seen.specialists)


def pids(seen: StatusReport) -> dict[str, int | None]:
    return {one.name: one.pid for one in seen.specialists}


def one(seen: StatusReport, name: str) -> SpecialistStatus:
    [found] = [one for one in seen.specialists if one.name == name]
    return found


def fork_server_of(team: Team) -> psutil.Process:
    """The fork server: whoever is the parent of a specialist."""
    parent = psutil.Process(team.pid(team.env["CHORUS_ROSTER"].split(",")[0])).parent()
    assert parent is not None
    return parent
