from __future__ import annotations

import subprocess
import sys

import anyio
from keeping import gone
from msgspec.structs import replace

from supervisor.fleet import pidfiles, survivors

# Leads a group, has a child in it, says the child's pid.
LEADER = """
import subprocess, time
print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
time.sleep(600)
"""


async def test_what_a_survivor_had_started_ends_with_it() -> None:
    with subprocess.Popen([sys.executable, "-c", LEADER], stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        process = replace(pidfiles.this_process(), pid=leader.pid, ticks=pidfiles.ticks_of(leader.pid))
        with anyio.fail_after(10):
            await survivors.end([process], 5.0)
            await gone(child)
