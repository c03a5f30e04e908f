"""Two hundred specialists are kept like eighteen: each one process, nobody refused, nothing left. (Figures: scripts/bench.)"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from keeping import all_ready, forked_by, pids, report, until
from team import Team

SIZE = 200
KILLED = 10
ROSTER = [f"voice{number:03}" for number in range(SIZE)]


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Team]:
    with Team.start(tmp_path, roster=ROSTER) as team:
        yield team


async def test_two_hundred_specialists_fall_and_rise_like_eighteen(crowd: Team) -> None:
    before = await report(crowd)
    assert all_ready(before)
    old = pids(before)
    fork_server = psutil.Process(old[ROSTER[0]]).parent()
    assert fork_server is not None
    killed = ROSTER[:: SIZE // KILLED]
    for name in killed:
        pid = old[name]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    for one in before.specialists:  # a refused connect raises
        socket.create_connection((one.host, one.port), timeout=10).close()
    after = await until(crowd, lambda seen: all_ready(seen) and all(pids(seen)[name] != old[name] for name in killed))

    new = pids(after)
    assert {name for name in ROSTER if new[name] != old[name]} == set(killed)
    children = forked_by(fork_server)
    assert {child.pid for child in children} == set(new.values())  # one process for each, and no zombie
    assert psutil.STATUS_ZOMBIE not in {child.status() for child in children}
