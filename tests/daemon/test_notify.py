"""What a process tells its service manager, over a real datagram socket."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from ports import free_port
from team import ROOT, command

from daemon.notify import Systemd


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The manager's datagram socket, at a path that is short because it is relative."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("notify")
        listening.settimeout(5)
        yield listening


def heard(manager: socket.socket) -> Iterator[bytes]:
    """What the manager is told, one datagram after the other."""
    while True:
        yield manager.recv(1024)


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


async def test_a_loop_that_crawls_does_not_feed_the_watchdog(manager: socket.socket) -> None:
    """Its timers come, but every turn takes longer than is good for anybody."""
    loop = asyncio.get_running_loop()
    turns = 0

    def crawl() -> None:
        nonlocal turns, crawling
        time.sleep(0.05)
        turns += 1
        crawling = loop.call_soon(crawl)

    crawling = loop.call_soon(crawl)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(Systemd({"NOTIFY_SOCKET": "notify", "WATCHDOG_USEC": "100000"}).keep_alive)
            while turns < 10:
                await anyio.lowlevel.checkpoint()
            crawling.cancel()
            assert not select.select([manager], [], [], 0)[0]
            assert await anyio.to_thread.run_sync(manager.recv, 1024) == b"WATCHDOG=1"  # it has recovered
            group.cancel_scope.cancel()


def test_a_specialist_tells_when_it_can_answer_and_that_it_lives_until_it_ends(
    tmp_path: Path, manager: socket.socket
) -> None:
    port = free_port()
    env = {"HOME": str(tmp_path), "CHORUS_BACKEND": "builtin", "PYTHONPATH": str(ROOT), "PATH": os.defpath}
    env |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    call = command("specialist", "run", "apollo", "--port", str(port))
    with subprocess.Popen(call, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            ready = next(said for said in heard(manager) if said != b"WATCHDOG=1")
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                pass
            for _ in range(3):
                assert next(heard(manager)) == b"WATCHDOG=1"
            process.terminate()
            ending = next(said for said in heard(manager) if said != b"WATCHDOG=1")
            assert process.wait(10) == 0
        finally:
            process.kill()
    assert ready == f"READY=1\nSTATUS=listening on port {port}, answers from builtin".encode()
    assert ending.startswith(b"STOPPING=1\n")


def test_a_watchdog_of_another_process_is_not_ours() -> None:
    environ = {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getppid())}
    assert Systemd(environ).watchdog is None
    assert Systemd(environ | {"WATCHDOG_PID": str(os.getpid())}).watchdog == 0.02


@pytest.mark.parametrize("interval", ["", "soon", "-1", "0"])
async def test_without_an_interval_there_is_no_watchdog(interval: str) -> None:
    with anyio.fail_after(5):
        await Systemd({"WATCHDOG_USEC": interval}).keep_alive()
