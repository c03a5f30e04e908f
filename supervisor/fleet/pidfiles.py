"""What says on disk that a process is ours: one file for each, which the process writes as its first act.

So whoever forked it may die at any instruction, before it told anybody of the child too. A number alone proves nothing, since
it may be anybody's by now: a process is that of its file when it began at the same tick of the same boot.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from functools import cache
from pathlib import Path

import msgspec

from supervisor.fleet.calls import Process, line

FOLDER = "processes"  # in the state folder: the files of all specialists
FORK_SERVER = "forkserver.pid"  # beside it: the fork server's own
STAT_STATE, STAT_STARTED = 0, 19  # fields of /proc/PID/stat after the command's closing parenthesis (proc(5): 3 and 22)


def this_process() -> Process:
    """Who we are, as the file of a process that is no specialist."""
    return Process(name="", pid=os.getpid(), started=time.time(), ticks=ticks_of(os.getpid()), boot=boot_id())


def path_of(folder: Path, process: Process) -> Path:
    return folder / f"{process.name}.{process.pid}"


def create(folder: Path, process: Process) -> None:
    """Writes the file of a new process, whole or not at all; one that is there already knows more and stays."""
    draft = folder / f".{process.name}.{process.pid}"
    draft.write_bytes(line(process))
    try:
        os.link(draft, path_of(folder, process))
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def replace(folder: Path, process: Process) -> None:
    """Writes what has changed: that it was asked to end, or to refuse new requests."""
    write(path_of(folder, process), process)


def write(path: Path, process: Process) -> None:
    """Writes a file, whole or not at all."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(line(process))
    draft.replace(path)


def read(path: Path) -> Process | None:
    """The process of a file if it still lives."""
    try:
        process = msgspec.json.decode(path.read_bytes(), type=Process)
    except (OSError, msgspec.MsgspecError):
        return None  # removed while we looked, or not one of ours
    return process if is_alive(process) else None


def remove(folder: Path, process: Process) -> None:
    path_of(folder, process).unlink(missing_ok=True)


def living(folder: Path) -> list[Process]:
    """The processes of all files that still live, oldest first. Files whose process is gone are removed."""
    found = []
    for path in folder.glob("[!.]*"):
        if process := read(path):
            found.append(process)
        elif _is_gone(path):
            with contextlib.suppress(OSError):
                path.unlink()
    return sorted(found, key=lambda one: one.started)


def is_alive(process: Process) -> bool:
    """Whether this very process lives: not a zombie, and not another one that was given its number."""
    return process.boot == boot_id() and process.ticks is not None and ticks_of(process.pid) == process.ticks


def ticks_of(pid: int) -> int | None:
    """When a process began, in ticks since the boot; None for one that is not there, or is a zombie."""
    if sys.platform != "linux":
        return _created(pid)
    fields = _stat(pid)
    return int(fields[STAT_STARTED]) if fields and fields[STAT_STATE] not in (b"Z", b"X") else None


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped, by a signal or a debugger; never, where the system does not say it cheaply."""
    fields = _stat(pid)
    return bool(fields) and fields[STAT_STATE] in (b"T", b"t")


@cache
def boot_id() -> str:
    """Tells this boot from all others; empty where the system has no such thing."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as boot:
        return boot.read().strip()
    return ""


def _stat(pid: int) -> list[bytes]:
    """The fields of proc(5) behind the command's closing parenthesis; none for a process that is not there."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            return stat.read(1024).rpartition(b")")[2].split()
    except OSError:
        return []


def _is_gone(path: Path) -> bool:
    """Whether the process of a file, which was not found alive, is gone for sure: to be out of descriptors proves nothing."""
    try:
        pid = int(path.suffix[1:])
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError):
        return False
    return ticks_of(pid) is not None  # and it is not the one of the file


def _created(pid: int) -> int | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time() * 1000)
    except psutil.Error:
        return None
