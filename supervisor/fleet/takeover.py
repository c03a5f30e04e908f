"""Specialists whose fork server is gone, and how their listening sockets are taken back: out of the processes themselves.

pidfd_getfd(2) copies an open socket of another process. The kernel allows it to root, to the same user, or only to ancestors
of the process, as kernel.yama.ptrace_scope says; we are an ancestor as long as we outlive the fork server, since what it
leaves becomes our child. Where the kernel refuses, the specialist is restarted instead (`survivors.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import socket
import time
from pathlib import Path

import anyio

from supervisor.fleet import calls, pidfiles
from supervisor.fleet.calls import Process

PIDFD_GETFD = 438  # the same number on every architecture (asm-generic/unistd.h)
SETTLED_WITHIN = 2.0  # seconds in which a child that was just forked has written its file, or has ended
LOOK_EVERY = 0.01
_NOBODY = (calls.FORK_SERVER, calls.SPARE)
_TITLE = re.compile(r"chorus: (\S+) \[([\d ]+)\]")
LOOPBACK = ("127.0.0.1", "::1")  # where everybody listens, unless the configuration says something else


async def left_behind(pids: Path, known: set[int]) -> list[Process]:
    """The specialists that live and that no fork server knows, oldest first.

    Those without a file, which a full disk or a moment denied them, are found among our own children.
    """
    with anyio.move_on_after(SETTLED_WITHIN):
        # One that still bears the title of the fork server, or of its spare, is about to become a specialist, or to end.
        while any(_title(pid).startswith(_NOBODY) for pid in _children() - known):  # noqa: ASYNC110 - there is no event
            await anyio.sleep(LOOK_EVERY)
    found = [one for one in pidfiles.living(pids) if one.pid not in known]
    known = known | {one.pid for one in found}
    nameless = [process for pid in sorted(_children() - known) if (process := _recognised(pid))]
    return sorted([*found, *nameless], key=lambda one: one.started)


def listeners_of(process: Process) -> list[socket.socket]:
    """Copies of its listening sockets, which the caller closes. OSError where it is gone or the kernel refuses."""
    if not hasattr(os, "pidfd_open"):  # macOS, and interpreters that were built on an old Linux
        raise OSError("sockets can be taken out of a process only where there is pidfd_open(2)")
    end = os.pidfd_open(process.pid)
    ports = calls.ports(process.places)
    found: list[socket.socket] = []
    try:
        if not pidfiles.is_alive(process):  # asked after the pidfd was opened, so that both mean one process
            raise ProcessLookupError(f"process {process.pid} is gone")
        for number in sorted(map(int, os.listdir(f"/proc/{process.pid}/fd"))):
            if not _path_of(process.pid, number).startswith("socket:"):
                continue
            try:
                one = socket.socket(fileno=_copied(end, number))
            except OSError as error:
                if error.errno == errno.EBADF:
                    continue  # closed meanwhile: its clients come and go
                raise
            if _listens_on(one, ports):
                found.append(one)
            else:
                one.close()
    except OSError:
        for one in found:
            one.close()
        raise
    finally:
        os.close(end)
    return found


def _copied(pidfd: int, number: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    copy: int = libc.syscall(PIDFD_GETFD, pidfd, number, 0)
    if copy < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return copy


def _listens_on(one: socket.socket, ports: list[int]) -> bool:
    if one.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) and one.getsockname()[1] in ports


def _path_of(pid: int, number: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{number}")
    except FileNotFoundError:
        return ""  # closed meanwhile


def _children() -> set[int]:
    """Our children, which those of a dead fork server become where the system has such a thing (prctl(2), subreaper)."""
    found: set[int] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(map(int, task.read_text().split()))
    return found


def _title(pid: int) -> str:
    """What ps shows; empty for a zombie, and for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _recognised(pid: int) -> Process | None:
    """Who is a specialist by its title, or a program by what it was given; its configuration is not known, so it will be
    replaced.
    """
    if found := _TITLE.fullmatch(_title(pid)):
        name, ports = found.groups()
    elif (given := _given(pid)).get("LISTEN_PID") == str(pid) and "CHORUS_NAME" in given:
        name, ports = given["CHORUS_NAME"], given["CHORUS_PORT"]
    else:
        return None
    return Process(
        name=name,
        pid=pid,
        started=time.time(),
        ticks=pidfiles.ticks_of(pid),
        boot=pidfiles.boot_id(),
        places=[(address, int(port)) for port in ports.split() for address in LOOPBACK],
    )


def _given(pid: int) -> dict[str, str]:
    """The environment that a program was started with; empty where that may not be seen."""
    try:
        said = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return {key: value for key, is_said, value in (one.partition("=") for one in said) if is_said}
