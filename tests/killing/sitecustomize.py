"""Loaded by every process of a team whose PYTHONPATH begins with this folder: kills one of them at a line of its own code.

KILL_IN names the process, `forkserver` or `supervisor`. As soon as the file KILL_AT exists, the lines that this process runs in
the files of supervisor/ are counted, and at the one whose number the file says it is killed. The file is removed with it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

BEGINS = {"forkserver": ("forkserver.py", "main"), "supervisor": ("app.py", "_house")}
WHO = os.environ.get("KILL_IN", "")
AT = Path(os.environ.get("KILL_AT", "/nowhere"))
HOME = f"{os.sep}supervisor{os.sep}"


class Victim:
    """The process that is to die, and how many of its lines were counted."""

    pid = 0
    lines = 0


def entered(frame: FrameType, event: str, arg: object) -> Any:
    """A function is called, in whichever process."""
    code = frame.f_code
    if HOME not in code.co_filename:
        return None
    if not Victim.pid and (os.path.basename(code.co_filename), code.co_name) == BEGINS[WHO]:
        Victim.pid = os.getpid()
    return ran if Victim.pid == os.getpid() else None


def ran(frame: FrameType, event: str, arg: object) -> Any:
    """A line is about to run."""
    if event == "line" and Victim.pid == os.getpid() and AT.exists():
        Victim.lines += 1
        if Victim.lines == int(AT.read_text()):
            AT.unlink()
            os.kill(Victim.pid, signal.SIGKILL)
    return ran


if WHO in BEGINS:
    sys.settrace(entered)
