"""What a fault needs of the machine: a disk that can be filled, forks that can be forbidden, a clock that can be set.

What this machine cannot do is said with its reason, and its faults are left out. Everything ends with the process that
began it: the mount is in a namespace of its own, the group of processes is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import subprocess
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_PRIVATE_AND_BELOW = (1 << 18) | 0x4000  # MS_PRIVATE | MS_REC
DISK = "size=48m,mode=700"
PIDS = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))  # version 1, version 2


class Machine:
    """One home's surroundings. `lacks` says, for each kind of fault that cannot be had here, why."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.logs = home / ".local/state/chorus/logs"
        self.lacks: dict[str, str] = {}
        self._filler = self.logs / "filler"
        self.clock = home.with_name("clock")
        self._group: Path | None = None
        self._limited: int | None = None

    def prepare(self) -> None:
        """Before the team is started: nothing of this can be had afterwards."""
        self._have_a_small_disk()
        self.set_clock(0)
        self._have_a_group()

    def _have_a_small_disk(self) -> None:
        self.logs.mkdir(parents=True, mode=0o700)
        libc = ctypes.CDLL(None, use_errno=True)
        if os.getuid() != 0:
            self.lacks["disk full"] = "only root can mount a small disk on the log folder"
        elif libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_PRIVATE_AND_BELOW, None):
            self.lacks["disk full"] = f"no mount namespace of our own: {os.strerror(ctypes.get_errno())}"
        else:
            call = ["mount", "-t", "tmpfs", "-o", DISK, "none", os.fspath(self.logs)]
            done = subprocess.run(call, capture_output=True, text=True, check=False)
            if done.returncode:
                self.lacks["disk full"] = f"the log folder cannot be a small disk: {done.stderr.strip()}"

    def _have_a_group(self) -> None:
        if os.getuid() != 0:
            return  # RLIMIT_NPROC does it for everybody but root
        for top in PIDS:
            group = top / f"chorus-chaos-{os.getpid()}"
            with contextlib.suppress(OSError):
                if (top / "cgroup.subtree_control").exists():
                    (top / "cgroup.subtree_control").write_text("+pids")
                group.mkdir()
                if (group / "pids.max").exists():
                    self._group = group
                    return
                group.rmdir()
        self.lacks["fork fails"] = "there is no pids controller, and RLIMIT_NPROC does not bind root"

    # -- the faults -----------------------------------------------------------------------------------------------------------

    def fill_the_disk(self) -> None:
        with self._filler.open("wb", buffering=0) as filler, contextlib.suppress(OSError):  # no space left on device
            while True:
                filler.write(b"\0" * 65536)

    def clear_the_disk(self) -> None:
        self._filler.unlink(missing_ok=True)

    def forbid_forks(self, pid: int) -> None:
        """From here on `pid` cannot fork; what it has forked goes on."""
        self._limited = pid
        if self._group is not None:
            (self._group / "cgroup.procs").write_text(str(pid))
            self._empty_the_group(but=pid)  # what it forked before would not get a thread any more
            (self._group / "pids.max").write_text("1")  # it is one already
        else:
            resource.prlimit(pid, resource.RLIMIT_NPROC, (1, resource.prlimit(pid, resource.RLIMIT_NPROC)[1]))

    def allow_forks(self) -> None:
        if self._group is not None:
            (self._group / "pids.max").write_text("max")
        elif self._limited is not None:
            hard = resource.prlimit(self._limited, resource.RLIMIT_NPROC)[1]
            resource.prlimit(self._limited, resource.RLIMIT_NPROC, (hard, hard))

    def set_clock(self, seconds: int) -> None:
        """How far the team's wall clock is off, from now on; its monotonic clock is left alone."""
        with self.clock.open("r+b" if self.clock.exists() else "wb") as file:
            file.write(struct.pack("q", seconds))

    def restore(self) -> None:
        """When every process of the team is gone."""
        self.clear_the_disk()
        if self._group is not None:
            self._empty_the_group()
            with contextlib.suppress(OSError):
                self._group.rmdir()

    def _empty_the_group(self, but: int | None = None) -> None:
        assert self._group is not None
        for pid in (self._group / "cgroup.procs").read_text().split():
            if pid != str(but):
                with contextlib.suppress(OSError):  # it has ended
                    (self._group.parent / "cgroup.procs").write_text(pid)
