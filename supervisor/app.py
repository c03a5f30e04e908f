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
import gc
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread

from daemon.logs import start_logging
from protocol import names
from protocol.control import BackendStatus, SpecialistStatus, StatusReport
from protocol.settings import SpecialistConfig
from supervisor.config import Loaded, team
from supervisor.control import Control, Fleet
from supervisor.errors import AlreadyRunning, ForkServerLost
from supervisor.fleet import launch, restart
from supervisor.fleet.calls import Exited, Living
from supervisor.fleet.inbox import Adopted, Command
from supervisor.fleet.keeper import END_MARGIN, Keeper
from supervisor.fleet.lifecycle import State
from supervisor.fleet.link import Link, connected
from supervisor.fleet.marks import Marks
from supervisor.fleet.registry import Registry, read_journal
from supervisor.notify import Systemd
from supervisor.places import private_folder

logger = logging.getLogger("chorus.supervisor")

ORDERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # each of them is a `down`
LOST_WITHIN = 30.0  # seconds in which a few lost fork servers are an accident, and more a reason to try slowly
LIVENESS_RESTARTS = 3  # hung processes of the whole fleet ended at the same time
LOCK_WITHIN = 0.1  # seconds: a command that looks whether the lock is held has it for a moment itself
PR_SET_CHILD_SUBREAPER = 36


def fork_socket(loaded: Loaded) -> Path:
    """Where the fork server listens: where it was started, or else beside the control socket, under the same name.

    The place of the control socket may be another one after a fresh login; the fork server stays where it is.
    """
    try:
        recorded = Path((loaded.dirs.state / "forkserver").read_text().strip())
    except OSError:
        return loaded.socket.with_suffix(".fork")
    return recorded if launch.is_running(recorded) else loaded.socket.with_suffix(".fork")


def journal_of(loaded: Loaded) -> Path:
    return loaded.dirs.state / "registry.json"


def run(loaded: Loaded, *, ready_fd: int | None = None, to_stderr: bool = False) -> None:
    """Is the supervisor until it is asked to go down. Call it before anything heavy is imported or any thread exists.

    `ready_fd` is given a byte and closed when the team can be asked. Raises AlreadyRunning when the state folder is taken.
    """
    lock = _lock(private_folder(loaded.dirs.state))
    private_folder(loaded.dirs.runtime)
    logs = private_folder(loaded.dirs.logs)
    # Held back until there is somebody to carry them out: an early Ctrl-C must not leave the fork server behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, ORDERS)
    forks = fork_socket(loaded)
    found = launch.is_running(forks)
    if not found:
        # The two share what is loaded by now for as long as neither's collector writes to it.
        gc.collect()
        gc.freeze()
        launch.launch(forks, logs, (lock, *([] if ready_fd is None else [ready_fd])))
        (loaded.dirs.state / "forkserver").write_text(f"{forks}\n")
    start_logging("supervisor", None if to_stderr else logs, os.environ)
    (loaded.dirs.state / "socket").write_text(f"{loaded.socket}\n")
    if sys.platform == "linux":
        # Should the fork server die, its children become ours and not init's: we hear of their ends.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        anyio.run(_house, loaded, ready_fd, forks, found)
    finally:
        os.close(lock)


async def _house(loaded: Loaded, ready_fd: int | None, forks: Path, found: bool) -> None:
    configs = team(loaded)
    before = read_journal(journal_of(loaded))
    registry = Registry(journal_of(loaded), _entries(loaded, configs, before), _backend(loaded, before))
    systemd = Systemd(os.environ)
    stop = anyio.Event()
    fleet = Fleet(registry, {}, stop, loaded)
    loop = asyncio.get_running_loop()
    for number in ORDERS:
        # Who asks a second time has no patience left.
        loop.add_signal_handler(number, lambda: fleet.go_down(0.0 if stop.is_set() else None))
    loop.add_signal_handler(signal.SIGCHLD, _reap)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERS)

    async with anyio.create_task_group() as house:
        house.start_soon(registry.run)
        house.start_soon(systemd.keep_alive)
        control = Control(loaded.socket, fleet)
        await house.start(control.run)
        async with anyio.create_task_group() as leaving:
            if before is not None and not found:
                await _end_survivors(before.specialists, loaded, leaving)
            resumed = before is not None and before.supervisor.state == "running"
            lost = restart.Record()
            while not fleet.down.is_set():
                try:
                    await _keep_fleet(loaded, configs, fleet, systemd, forks, ready_fd, resumed=resumed)
                except* ForkServerLost as errors:
                    logger.error("%s; starting over with a new one", errors.exceptions[0])
                    lost = restart.failed(lost, time.monotonic(), loaded.settings.supervision.intensity, LOST_WITHIN)
                    with anyio.move_on_after(restart.next_delay(lost, 0.5)):
                        await stop.wait()
                    await _start_over(loaded, fleet, forks, leaving)
                ready_fd, resumed = None, True
        await control.tell_the_last()
        house.cancel_scope.cancel()
    loaded.socket.unlink(missing_ok=True)


async def _keep_fleet(
    loaded: Loaded,
    configs: list[SpecialistConfig],
    fleet: Fleet,
    systemd: Systemd,
    forks: Path,
    ready_fd: int | None,
    *,
    resumed: bool,
) -> None:
    """Keeps the specialists until asked to stop. Raises ForkServerLost, in a group."""
    supervision = loaded.settings.supervision
    marks = Marks(loaded.dirs.logs)
    brake = anyio.CapacityLimiter(LIVENESS_RESTARTS)
    keepers: dict[str, Keeper] = {}

    def on_exit(exit_: Exited) -> None:
        if keeper := keepers.get(exit_.name):
            keeper.tell(exit_)

    async with connected(forks, on_exit) as link, anyio.create_task_group() as group:
        for config in configs:
            own = loaded.settings.specialists.get(config.name)
            policy = (own.restart if own else None) or supervision.restart
            keeper = Keeper(config, supervision, policy, link, fleet.registry, brake, marks.write)
            keepers[config.name] = keeper
            group.start_soon(keeper.run)
        living: Living = await group.start(link.run)
        await link.policy(stop_without_supervisor=supervision.on_supervisor_exit == "stop")
        await _take_over(link, living, fleet, keepers, group, resumed=resumed)
        fleet.keepers = keepers
        if ready_fd is not None:
            os.write(ready_fd, b"\n")
            os.close(ready_fd)
        systemd.say("READY=1", f"STATUS={len(keepers)} specialists")
        group.start_soon(marks.cap, list(keepers))
        await fleet.stop.wait()
        systemd.say("STOPPING=1")
        await fleet.take_down()
        await link.quit()
        fleet.went_down()
        group.cancel_scope.cancel()


async def _take_over(
    link: Link,
    living: Living,
    fleet: Fleet,
    keepers: dict[str, Keeper],
    group: anyio.abc.TaskGroup,
    *,
    resumed: bool,
) -> None:
    """Goes on with what lives, hears of what died meanwhile, and starts what is wanted."""
    wanted = {name: fleet.registry[name].wanted if resumed else "up" for name in keepers}
    for name in living.held:
        if name not in keepers:
            await link.release(name)
    for process in living.processes:
        if keeper := keepers.get(process.name):
            keeper.tell(Adopted(process))
        else:
            logger.warning("%s is not in the team any more: its process %d is ended", process.name, process.pid)
            group.start_soon(_end_stranger, link, process.pid, fleet.loaded.settings.supervision.grace + END_MARGIN)
    for exit_ in living.exits:
        if keeper := keepers.get(exit_.name):
            keeper.note_missed(exit_)
    alive = {process.name for process in living.processes if not process.stopping}
    for name, keeper in keepers.items():
        if name in alive and wanted[name] == "down":
            keeper.tell(Command("stop", "was to be stopped"))
        elif name not in alive and wanted[name] != "down" and not fleet.stop.is_set():
            keeper.tell(Command("start", "the team was started"))
            if wanted[name] == "drained":
                keeper.tell(Command("drain", "was drained before"))


async def _end_stranger(link: Link, pid: int, grace: float) -> None:
    await link.signal(pid, signal.SIGTERM)
    await anyio.sleep(grace)
    await link.signal(pid, signal.SIGKILL, group=True)


async def _start_over(loaded: Loaded, fleet: Fleet, forks: Path, leaving: anyio.abc.TaskGroup) -> None:
    """The fork server is gone. Its children hold their ports, so they are asked to end, and a new one is started."""
    registry = fleet.registry
    fleet.keepers = {}
    await _end_survivors([registry[name] for name in registry.names], loaded, leaving)
    for name in registry.names:
        if registry[name].state != State.STOPPED.value:
            registry.move(name, State.STOPPED.value, "the fork server was lost", pid=None, uptime=None)
    if fleet.stop.is_set():
        fleet.went_down()
        return
    # A process of its own this time: this one has an event loop and threads, which do not survive a fork. It listens
    # when the one that is waited for here has ended.
    call = [sys.executable, "-P", "-m", "supervisor.fleet.launch", str(forks), str(loaded.dirs.logs)]
    await anyio.to_thread.run_sync(lambda: subprocess.run(call, stdin=subprocess.DEVNULL, check=False))


async def _end_survivors(specialists: list[SpecialistStatus], loaded: Loaded, leaving: anyio.abc.TaskGroup) -> None:
    """Asks processes without a fork server to end: in `leaving`, since their answers may take as long as their grace."""
    if not any(one.pid for one in specialists):
        return
    from supervisor.fleet import survivors  # psutil, which a start after a clean end does without

    if found := survivors.find(specialists):
        logger.warning("%d specialists have lost their fork server: they end and are started anew", len(found))
        leaving.start_soon(survivors.end, found, loaded.settings.supervision.grace + END_MARGIN)


def end_survivors(loaded: Loaded) -> int:
    """Ends specialists that have neither a supervisor nor a fork server any more; returns how many there were."""
    from supervisor.fleet import survivors

    before = read_journal(journal_of(loaded))
    found = survivors.find(before.specialists) if before is not None else []
    if found:
        anyio.run(survivors.end, found, loaded.settings.supervision.grace + END_MARGIN)
    return len(found)


def _entries(loaded: Loaded, configs: list[SpecialistConfig], before: StatusReport | None) -> list[SpecialistStatus]:
    """The team as the registry begins: stopped, with what is remembered of restarts and of the last exit."""
    known = {one.name: one for one in before.specialists} if before is not None else {}
    resumed = before is not None and before.supervisor.state == "running"  # after a `down` everybody is wanted again

    def entry(config: SpecialistConfig) -> SpecialistStatus:
        last = known.get(config.name)
        return SpecialistStatus(
            name=config.name,
            ai_id=names.ai_id(config.name),
            host=config.addresses[0],
            port=config.port,
            state=State.STOPPED.value,
            wanted=last.wanted if last and resumed else "up",
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


def _reap() -> None:
    """Children that are not ours by fork but became ours when their parent died."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def lock_holder(loaded: Loaded) -> int | None:
    """The supervisor that holds the state folder, as its lock says; only of use while the lock is held."""
    try:
        text = (loaded.dirs.state / "supervisor.lock").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _lock(state: Path) -> int:
    """One supervisor for each state folder. The lock lives as long as the descriptor."""
    descriptor = os.open(state / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_WITHIN
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(LOCK_WITHIN / 10)
                continue
            held_by = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise AlreadyRunning(int(held_by) if held_by.isdigit() else None) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor
