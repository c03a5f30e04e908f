"""Where a supervisor under systemd writes: the journal. Found out from /proc; nothing is asked of systemd."""

from __future__ import annotations

import os
from pathlib import Path

from supervisor.config import Loaded


def journal_line(loaded: Loaded, proc: Path = Path("/proc")) -> str | None:
    """The command that shows the supervisor's journal; None when it writes elsewhere, or is not seen to run."""
    try:
        pid = int((loaded.dirs.state / "supervisor.lock").read_text())
        environ = (proc / str(pid) / "environ").read_bytes().split(b"\0")
        journal = next(
            value for name, _, value in (one.partition(b"=") for one in environ) if name == b"JOURNAL_STREAM"
        )
        stderr = os.readlink(proc / str(pid) / "fd/2")
        groups = (proc / str(pid) / "cgroup").read_text().split()
    except (OSError, ValueError, StopIteration):
        return None
    # $JOURNAL_STREAM is inherited by everything a unit starts: only who still has that very socket writes there.
    if stderr != f"socket:[{journal.decode().partition(':')[2]}]":
        return None
    path = groups[0].partition("::")[2]
    unit = next((part for part in reversed(path.split("/")) if part.endswith(".service")), None)
    if unit is None:
        return None
    manager = "--user " if "/user@" in path else ""
    return f"journalctl {manager}-u {unit} -f"
