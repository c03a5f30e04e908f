"""The supervisor's process: what runs in it, in what order it comes up, and in what order it goes down.

    lock on the state folder
    └── fork server                     launched, or found alive
        └── house                       registry's journal, systemd's watchdog, signals
            └── fleet                   one keeper for each specialist, and one for the gateway
                └── control socket      last up, first down

The fleet is built anew when the fork server is lost; the registry stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
from msgspec.structs import replace

from daemon.logs import start_logging
from daemon.notify import Systemd
from protocol.control import BackendStatus, Entry, StatusReport
from protocol.settings import ChildConfig
from supervisor import notify, roster
from supervisor.config import Loaded
from supervisor.control import Control
from supervisor.errors import AlreadyRunning, ForkServerLost
from supervisor.fleet import descriptors, launch, obstacle, pidfiles, restart
from supervisor.fleet.copies import Copies
from supervisor.fleet.registry import Registry, is_kept_down, newcomer, read_journal
from supervisor.fleet.systemctl import own_manager
from supervisor.observing import Observation
from supervisor.operations import Fleet
from supervisor.places import private_folder
from supervisor.tenure import Reaper, Tenure, end_left_behind

logger = logging.getLogger("chorus.supervisor")

ORDERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # each of them is a `down`
LOST_WITHIN = 30.0  # seconds in which a few lost fork servers are an accident, and more a reason to try slowly
LEAST_TENURE = 0.5  # seconds from one fork server to the next: what fails at once will fail at once again
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


def run(loaded: Loaded, reread: Callable[[], Loaded], *, ready_fd: int | None = None, to_stderr: bool = False) -> None:
    """Is the supervisor until it is asked to go down. Call it before anything heavy is imported or any thread exists.

    `reread` loads the configuration again as `loaded` was, for `chorus reload`.
    `ready_fd` is given a byte and closed when the team can be asked. Raises AlreadyRunning when the state folder is taken,
    and NoServiceManager when systemd is to be the restarter and is not here.
    """
    delegates = loaded.settings.supervision.restarter == "systemd"
    if delegates:
        own_manager(os.environ)
    lock = _lock(private_folder(loaded.dirs.state))
    private_folder(loaded.dirs.runtime)
    logs = private_folder(loaded.dirs.logs)
    if launch.is_running(loaded.socket):
        # The lock is ours, and yet somebody answers here: a supervisor whose state folder was removed under it.
        raise AlreadyRunning(None)
    # Held back until there is somebody to carry them out: an early Ctrl-C must not leave the fork server behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, ORDERS)
    forks = fork_socket(loaded)
    if not delegates and not launch.is_running(forks):
        _kill_out_of_reach(loaded)
        # The two share what is loaded by now for as long as neither's collector writes to it.
        gc.collect()
        gc.freeze()
        launch.launch(forks, logs, loaded.dirs.state, (lock, *([] if ready_fd is None else [ready_fd])))
        _record(loaded.dirs.state / "forkserver", f"{forks}\n")
    descriptors.make_room()
    start_logging("supervisor", None if to_stderr else logs, os.environ)
    _record(loaded.dirs.state / "socket", f"{loaded.socket}\n")
    if sys.platform == "linux" and not delegates:
        # Should the fork server die, its children become ours and not init's: we hear of their ends.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        anyio.run(_house, loaded, reread, ready_fd, forks)
    finally:
        os.close(lock)


async def _house(loaded: Loaded, reread: Callable[[], Loaded], ready_fd: int | None, forks: Path) -> None:
    configs = roster.children(loaded)
    before = read_journal(journal_of(loaded))
    restarter = loaded.settings.supervision.restarter
    registry = Registry(journal_of(loaded), _entries(loaded, configs, before), _backend(loaded, before), restarter)
    registry.came_up(before)
    systemd = Systemd(os.environ)
    stop = anyio.Event()
    fleet = Fleet(registry, stop, loaded, reread, systemd)
    reaper = Reaper()
    copies = Copies()
    loop = asyncio.get_running_loop()
    for number in ORDERS:
        # Who asks a second time has no patience left.
        loop.add_signal_handler(number, lambda: fleet.go_down(0.0 if stop.is_set() else None))
    if restarter == "chorus":  # elsewhere our only children are commands, which are waited for where they are called
        loop.add_signal_handler(signal.SIGCHLD, reaper.reap)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERS)

    lost = restart.Record()

    def ready() -> None:
        nonlocal ready_fd
        if lost.in_a_row:
            registry.happened("a new fork server takes over")
            registry.warn(None)
        if ready_fd is not None:
            with contextlib.suppress(BrokenPipeError):  # nobody waits any more: `up` was interrupted
                os.write(ready_fd, b"\n")
            os.close(ready_fd)
            ready_fd = None
        systemd.say("READY=1")

    async with anyio.create_task_group() as house:
        house.start_soon(registry.run)
        control = Control(loaded.socket, fleet)
        await house.start(control.run)
        house.start_soon(notify.keep_alive, systemd, loaded.socket)
        house.start_soon(notify.tell_status, systemd, registry)
        async with anyio.create_task_group() as leaving:
            resumed = before is not None and before.supervisor.state == "running"
            if restarter == "systemd":
                knew = before is not None and before.supervisor.restarter == restarter
                await Observation(loaded, fleet, systemd).run(configs, ready, resumed=resumed and knew)
            running = {name: one.pid for name, one in _known(before).items()} if resumed else {}
            missing, refused = "no supervisor was running", None
            while not fleet.down.is_set():
                tenure = Tenure(fleet.loaded, fleet, systemd, reaper, copies, leaving)
                began = time.monotonic()
                try:
                    await tenure.run(roster.children(fleet.loaded), forks, running, missing, ready, resumed=resumed)
                except* ForkServerLost as errors:
                    logger.error("%s; starting over with a new one", errors.exceptions[0])
                    registry.happened(f"{errors.exceptions[0]}; starting over with a new one")
                    registry.warn(*obstacle.without_fork_server(refused))
                    lasted = time.monotonic() - began
                    lost = restart.forgiven(lost, lasted)
                    lost = restart.failed(lost, time.monotonic(), loaded.settings.supervision.intensity, LOST_WITHIN)
                    with anyio.move_on_after(
                        restart.LONGEST_DELAY if lost.gave_up else max(0.0, LEAST_TENURE - lasted)
                    ):
                        await stop.wait()
                    running = {name: registry[name].pid for name in registry.everybody}
                    refused = await _start_over(loaded, fleet, forks)
                resumed, missing = True, "the fork server was gone"
        await control.tell_the_last()
        house.cancel_scope.cancel()
    loaded.socket.unlink(missing_ok=True)


async def _start_over(loaded: Loaded, fleet: Fleet, forks: Path) -> int | None:
    """The fork server is gone, or of no use any more. The specialists live on while a new one is started.

    Returns the errno by which that failed, as far as it is known by now.
    """
    fleet.keepers = {}
    _kill_out_of_reach(loaded)
    if fleet.stop.is_set():
        await end_left_behind(loaded)
        fleet.went_down()
        return None
    # A process of its own this time: this one has an event loop and threads, which do not survive a fork. It listens
    # when the one that is waited for here has ended.
    folders = [loaded.dirs.logs, loaded.dirs.state]
    call = [sys.executable, "-P", "-m", "supervisor.fleet.launch", *map(os.fspath, (forks, *folders))]
    try:
        for folder in folders:
            private_folder(folder)  # somebody may have removed it
        done = await anyio.to_thread.run_sync(lambda: subprocess.run(call, stdin=subprocess.DEVNULL, check=False))
    except OSError as error:  # no descriptor, no process, no place: nobody will listen, and it is tried again
        logger.error("no fork server can be started: %s", error)
        return error.errno
    return done.returncode if done.returncode > 0 else None


def _kill_out_of_reach(loaded: Loaded) -> None:
    """Ends the fork server of this state folder, which hung up on us or whose socket was removed with its folder.

    Another one takes over what it has; with two, ports that are to be closed would be held by the one that nobody asks.
    """
    if left := pidfiles.read(loaded.dirs.state / pidfiles.FORK_SERVER):
        with contextlib.suppress(ProcessLookupError):
            os.kill(left.pid, signal.SIGKILL)


def _entries(loaded: Loaded, configs: Sequence[ChildConfig], before: StatusReport | None) -> list[Entry]:
    """The team as the registry begins: stopped, with what is remembered of restarts and of the last exit."""
    known = _known(before)
    resumed = before is not None and before.supervisor.state == "running"  # after a `down` everybody is wanted again

    def entry(config: ChildConfig) -> Entry:
        last = known.get(config.name)
        if last is None:
            return newcomer(config)
        fields = ["restarts", "recycled", "last_exit", "started_because"]
        if resumed and loaded.settings.supervision.restarter == "chorus" and is_kept_down(last):
            fields += ["state", "since", "last_error", "remedy"]  # so it stays
        remembered = {field: getattr(last, field) for field in fields}
        return replace(newcomer(config), wanted=last.wanted if resumed else "up", **remembered)

    return [entry(config) for config in configs]


def _known(before: StatusReport | None) -> dict[str, Entry]:
    """What the last supervisor wrote of those whom it kept, by name."""
    return {one.name: one for one in before.everybody} if before is not None else {}


def _backend(loaded: Loaded, before: StatusReport | None) -> BackendStatus:
    if before is not None:
        return before.backend
    return BackendStatus(loaded.settings.backend.kind, loaded.url, "down", None, loaded.settings.backend.model)


def _record(path: Path, text: str) -> None:
    """Writes where others find us. On a full disk what was there stays: mostly it says the same."""
    draft = path.with_name(f".{path.name}.new")
    try:
        draft.write_text(text)
        draft.replace(path)
    except OSError as error:
        logger.error("cannot write %s: %s", path, error)


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
    said = f"{os.getpid()}\n".encode()
    with contextlib.suppress(OSError):  # a full disk: the lock holds without it
        os.pwrite(descriptor, said, 0)
        os.ftruncate(descriptor, len(said))
    return descriptor
