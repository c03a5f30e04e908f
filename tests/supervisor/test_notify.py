"""What systemd hears of the supervisor, over a real datagram socket; the control socket that is looked at is real, too."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.abc
import pytest
from keeping import BACKEND

from daemon.notify import Systemd
from protocol.codec import encode
from protocol.control import Result, SpecialistStatus
from supervisor import notify
from supervisor.fleet.registry import Registry


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The manager's datagram socket, at a path that is short because it is relative."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("notify")
        listening.settimeout(5)
        yield listening


class Supervisor:
    """A control socket that answers while it `serves`."""

    def __init__(self) -> None:
        self.serves = True

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        async with await anyio.create_unix_listener("control") as listener:
            task_status.started()
            await listener.serve(self._answer)

    async def _answer(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            if self.serves:
                await stream.send(encode(Result(ok=True, changed=[], failed=[])))
            else:
                await anyio.sleep_forever()


def entry(name: str) -> SpecialistStatus:
    return SpecialistStatus(name=name, ai_id=f"{name}-ci", host="127.0.0.1", port=1, state="stopped", wanted="up")


async def hear(manager: socket.socket) -> str:
    return (await anyio.to_thread.run_sync(manager.recv, 1024)).decode()


async def test_the_watchdog_is_fed_while_the_control_socket_answers(
    manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor()
    systemd = Systemd({"NOTIFY_SOCKET": "notify", "WATCHDOG_USEC": "400000"})
    with anyio.fail_after(10), caplog.at_level(logging.ERROR):
        async with anyio.create_task_group() as group:
            await group.start(supervisor.run)
            group.start_soon(notify.keep_alive, systemd, Path("control"))
            assert [await hear(manager) for _ in range(2)] == ["WATCHDOG=1"] * 2
            supervisor.serves = False
            while "the watchdog is not fed" not in caplog.text:
                await anyio.lowlevel.checkpoint()
            manager.setblocking(False)
            assert _rest(manager) <= {"WATCHDOG=1"}
            while caplog.text.count("the watchdog is not fed") < 2:
                await anyio.lowlevel.checkpoint()
            assert _rest(manager) == set()
            supervisor.serves = True
            manager.settimeout(5)
            assert await hear(manager) == "WATCHDOG=1"
            group.cancel_scope.cancel()


async def test_a_control_socket_that_is_gone_is_said(manager: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": "notify", "WATCHDOG_USEC": "40000"})
    with anyio.fail_after(10), caplog.at_level(logging.ERROR):
        async with anyio.create_task_group() as group:
            group.start_soon(notify.keep_alive, systemd, Path("control"))
            while "no such file or directory" not in caplog.text:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    manager.setblocking(False)
    assert _rest(manager) == set()


async def test_the_status_is_said_after_every_change_and_only_then(manager: socket.socket, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "state/registry.json", [entry("apollo"), entry("athena")], BACKEND)
    systemd = Systemd({"NOTIFY_SOCKET": "notify"})
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(notify.tell_status, systemd, registry)
            assert await hear(manager) == "STATUS=running: 2 stopped"
            registry.touch()
            registry.move("apollo", "backing_off", "a test")
            assert await hear(manager) == "STATUS=running: 1 backing off, 1 stopped"
            group.cancel_scope.cancel()


def test_a_reload_has_a_beginning_and_an_end_once_we_are_ready(manager: socket.socket) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": "notify"})
    with systemd.reloading():
        systemd.say("READY=1")
    with systemd.reloading():
        pass
    assert manager.recv(1024) == b"READY=1"
    assert manager.recv(1024).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert manager.recv(1024) == b"READY=1"


def _rest(manager: socket.socket) -> set[str]:
    found = set()
    while True:
        try:
            found.add(os.fsdecode(manager.recv(1024)))
        except BlockingIOError:
            return found
