from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from supervisor.notify import Systemd


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The manager's datagram socket, at a path that is short because it is relative."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("notify")
        listening.settimeout(5)
        yield listening


def test_assignments_arrive_in_one_datagram(manager: socket.socket) -> None:
    Systemd({"NOTIFY_SOCKET": "notify"}).say("READY=1", "STATUS=18 specialists")
    assert manager.recv(1024) == b"READY=1\nSTATUS=18 specialists"


def test_an_abstract_socket_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("")  # the kernel chooses an abstract name
        listening.settimeout(5)
        name = listening.getsockname()[1:].decode()
        Systemd({"NOTIFY_SOCKET": f"@{name}"}).say("READY=1")
        assert listening.recv(1024) == b"READY=1"


def test_without_a_manager_nothing_is_said() -> None:
    Systemd({}).say("READY=1")


def test_a_manager_that_is_gone_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Systemd({"NOTIFY_SOCKET": str(tmp_path / "no")}).say("READY=1")
    assert "cannot tell systemd READY=1" in caplog.text


def test_a_manager_that_does_not_read_does_not_stop_us(
    manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": "notify"})
    while "cannot tell systemd" not in caplog.text:
        systemd.say("WATCHDOG=1")


async def test_the_watchdog_is_fed_until_cancelled(manager: socket.socket) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": "notify", "WATCHDOG_USEC": "20000"})
    assert systemd.watchdog == 0.02
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(systemd.keep_alive)
            for _ in range(3):
                assert await anyio.to_thread.run_sync(manager.recv, 1024) == b"WATCHDOG=1"
            group.cancel_scope.cancel()


@pytest.mark.parametrize("interval", ["", "soon", "-1"])
async def test_without_an_interval_there_is_no_watchdog(interval: str) -> None:
    with anyio.fail_after(5):
        await Systemd({"WATCHDOG_USEC": interval}).keep_alive()
