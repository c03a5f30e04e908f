"""What a process says of itself is measured."""

from __future__ import annotations

import mmap
import time

import anyio
import pytest
from serving import until

from daemon import vitals
from daemon.vitals import Lag, resident_bytes


async def test_a_blocked_loop_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "LAG_PERIOD", 0.01)
    lag = Lag()
    lag.start()
    time.sleep(0.05)  # the block itself
    with anyio.fail_after(5):
        await until(lambda: lag.seconds)
    lag.stop()
    assert lag.seconds > 0.02


def test_memory_that_is_used_is_counted() -> None:
    before = resident_bytes()
    with mmap.mmap(-1, 50_000_000) as used:  # fresh pages: what the allocator kept from others would not be new
        used.write(b"x" * 50_000_000)
        assert resident_bytes() - before > 40_000_000
