"""The supervisor's process: what runs in it, in what order it comes up, and in what order it goes down.

    lock on the state folder
    └── fork server                     launched, or found alive
        └── house                       registry's journal, systemd's watchdog, signals
            └── fleet                   one keeper for each specialist
                └── control socket      last up, first down

The fleet is built anew when the fork server is lost; the registry stays.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import logging
import os
import signal
import sys
import time
from pathlib import Path

import anyio
import anyio.abc
import psutil

from daemon.logs import start_logging
from protocol import names
from protocol.control import BackendStatus, SpecialistStatus, StatusReport
from protocol.settings import SpecialistConfig
from supervisor.config import Loaded, team
from supervisor.control import Control, Fleet
from supervisor.errors import AlreadyRunning, ForkServerLost
from supervisor.fleet import launch
from supervisor.fleet.calls import Exited, Living
from supervisor.fleet.keeper import Adopted, Command, Keeper
from supervisor.fleet.lifecycle import State
from supervisor.fleet.link import Link, connected
from supervisor.fleet.marks import Marks
from supervisor.fleet.registry import Registry, read_journal
from supervisor.notify import Systemd
from supervisor.places import private_folder

logger = logging.getLogger("chorus.supervisor")

LIVENESS_RESTARTS = 3  # hung processes of the whole fleet ended at the same time
PR_SET_CHILD_SUBREAPER = 36


def fork_socket(loaded: Loaded) -> Path:
    """Where the fork server listens: beside the control socket, under the same name."""
    return loaded.socket.with_suffix(".fork")


def journal_of(loaded: Loaded) -> Path:
    return loaded.dirs.state / "registry.json"


def run(loaded: Loaded, *, ready_fd: int | None = None, to_stderr: bool = False) -> None:
    """Is the supervisor until it is asked to go down. Call it before anything heavy is imported or any thread exists.

    `ready_fd` is closed when the control socket answers. Raises AlreadyRunning when the state folder is taken.
    """
    lock = _lock(private_folder(loaded.dirs.state))
    private_folder(loaded.dirs.runtime)
    logs = private_folder(loaded.dirs.logs)
    found = launch.is_running(fork_socket(loaded))
    if not found:
        launch.launch(fork_socket(loaded), logs, (lock, *([] if ready_fd is None else [ready_fd])))
    start_logging("supervisor", None if to_stderr else logs, os.environ)
    (loaded.dirs.state / "socket").write_text(f"{loaded.socket}\n")
    if sys.platform == "linux":
        # Should the fork server die, its children become ours and not init's: we hear of their ends.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        anyio.run(_house, loaded, ready_fd)
    finally:
        os.close(lock)


async def _house(loaded: Loaded, ready_fd: int | None) -> None:
    configs = team(loaded)
    before = read_journal(journal_of(loaded))
    registry = Registry(journal_of(loaded), _entries(loaded, configs, before), _backend(loaded, before))
    systemd = Systemd(os.environ)
    stop = anyio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGCHLD, _reap)

    fleet = Fleet(registry, {}, stop, loaded)
    async with anyio.create_task_group() as house:
        house.start_soon(registry.run)
        house.start_soon(systemd.keep_alive, lambda: not stop.is_set())
        control = Control(loaded.socket, fleet)
        await house.start(control.run)
        resumed = before is not None and before.supervisor.state == "running"
        while not stop.is_set():
            try:
                await _keep_fleet(loaded, configs, fleet, systemd, ready_fd, resumed=resumed)
            except ForkServerLost as error:
                logger.error("%s; starting over with a new one", error)
                await _start_over(loaded, registry)
            ready_fd, resumed = None, True
        systemd.say("STOPPING=1")
        house.cancel_scope.cancel()
    loaded.socket.unlink(missing_ok=True)


async def _keep_fleet(
    loaded: Loaded,
    configs: list[SpecialistConfig],
    fleet: Fleet,
    systemd: Systemd,
    ready_fd: int | None,
    *,
    resumed: bool,
) -> None:
    """Keeps the specialists until asked to stop. Raises ForkServerLost."""
    supervision = loaded.settings.supervision
    marks = Marks(loaded.dirs.logs)
    brake = anyio.CapacityLimiter(LIVENESS_RESTARTS)
    keepers: dict[str, Keeper] = {}

    def on_exit(exit_: Exited) -> None:
        if keeper := keepers.get(exit_.name):
            keeper.tell(exit_)

    async with connected(fork_socket(loaded), on_exit) as link, anyio.create_task_group() as group:
        for config in configs:
            own = loaded.settings.specialists.get(config.name)
            policy = (own.restart if own else None) or supervision.restart
            keeper = Keeper(config, supervision, policy, link, fleet.registry, brake, marks.write)
            keepers[config.name] = keeper
            group.start_soon(keeper.run)
        living: Living = await group.start(link.run)
        await link.policy(stop_without_supervisor=supervision.on_supervisor_exit == "stop")
        await _take_over(link, living, fleet.registry, keepers, resumed=resumed)
        fleet.keepers = keepers
        if ready_fd is not None:
            os.close(ready_fd)
        systemd.say("READY=1", f"STATUS={len(keepers)} specialists")
        await _wait_any(fleet.stop, link.lost)
        if link.lost.is_set():
            group.cancel_scope.cancel()
        else:
            await fleet.take_down()
            await link.quit()
            group.cancel_scope.cancel()
    if not fleet.stop.is_set():
        raise ForkServerLost("the process that holds the specialists' sockets is gone")


async def _take_over(
    link: Link, living: Living, registry: Registry, keepers: dict[str, Keeper], *, resumed: bool
) -> None:
    """Goes on with what lives, hears of what died meanwhile, and starts what is wanted."""
    for process in living.processes:
        if keeper := keepers.get(process.name):
            keeper.tell(Adopted(process.pid, process.started, process.draining))
        else:
            logger.warning("%s is not in the team any more: its process %d is ended", process.name, process.pid)
            await link.signal(process.pid, signal.SIGTERM)
    alive = {process.name for process in living.processes}
    for exit_ in living.exits:
        if keeper := keepers.get(exit_.name):
            keeper.note_missed(exit_)
    for name, keeper in keepers.items():
        if name not in alive and not (resumed and registry[name].wanted == "down"):
            keeper.tell(Command("start", "the team was started"))


async def _start_over(loaded: Loaded, registry: Registry) -> None:
    """The fork server is gone. Its children hold their ports, so they are asked to end; then a new one is started."""
    pids = [pid for name in registry.names if (pid := registry[name].pid)]
    for pid in pids:
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + loaded.settings.supervision.grace + 2
    while any(psutil.pid_exists(pid) for pid in pids):
        if time.monotonic() > deadline:
            for pid in pids:
                _signal(pid, signal.SIGKILL)
        await anyio.sleep(0.02)  # children of a dead parent: there is no exit to wait for but this
    for name in registry.names:
        if registry[name].state != State.STOPPED.value:
            registry.move(name, State.STOPPED.value, "the fork server was lost", pid=None, uptime=None)
    # A process of its own this time: this one has an event loop and threads, which do not survive a fork.
    await anyio.open_process(
        [sys.executable, "-m", "supervisor.fleet.launch", str(fork_socket(loaded)), str(loaded.dirs.logs)],
        start_new_session=True,
        stdin=None,
        stdout=None,
        stderr=None,
    )
    with anyio.fail_after(10):
        while not launch.is_running(fork_socket(loaded)):
            await anyio.sleep(0.02)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _entries(loaded: Loaded, configs: list[SpecialistConfig], before: StatusReport | None) -> list[SpecialistStatus]:
    """The team as the registry begins: stopped, with what is remembered of restarts and of the last exit."""
    known = {one.name: one for one in before.specialists} if before is not None else {}

    def entry(config: SpecialistConfig) -> SpecialistStatus:
        last = known.get(config.name)
        return SpecialistStatus(
            name=config.name,
            ai_id=names.ai_id(config.name),
            host=config.addresses[0],
            port=config.port,
            state=State.STOPPED.value,
            wanted=last.wanted if last else "up",
            restarts=last.restarts if last else 0,
            last_exit=last.last_exit if last else None,
            since=time.time(),
            description=config.description,
        )

    return [entry(config) for config in configs]


def _backend(loaded: Loaded, before: StatusReport | None) -> BackendStatus:
    if before is not None:
        return before.backend
    return BackendStatus(loaded.settings.backend.kind, loaded.url, "down", None, loaded.settings.backend.model)


async def _wait_any(*events: anyio.Event) -> None:
    async with anyio.create_task_group() as group:

        async def wait(event: anyio.Event) -> None:
            await event.wait()
            group.cancel_scope.cancel()

        for event in events:
            group.start_soon(wait, event)


def _reap() -> None:
    """Children that are not ours by fork but became ours when their parent died."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _lock(state: Path) -> int:
    """One supervisor for each state folder. The lock lives as long as the descriptor."""
    descriptor = os.open(state / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held_by = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise AlreadyRunning(int(held_by) if held_by.isdigit() else None) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor
