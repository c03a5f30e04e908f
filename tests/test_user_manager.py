"""The manager that other tests rely on is a real one: it starts units, keeps their journal, passes sockets, leaves nothing."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil
from ports import free_port
from team import wait_until
from user_manager import UserManager


def test_a_unit_runs_and_what_it_says_is_in_the_journal(user_manager: UserManager) -> None:
    user_manager.install("hello.service", "[Service]\nExecStart=/bin/sh -c 'echo hello; exec sleep 60'\n")
    user_manager.systemctl("start", "hello.service")
    assert user_manager.pids("hello.service") == {user_manager.main_pid("hello.service")}
    wait_until(lambda: bool(user_manager.journal("hello.service")), 5, "nothing came into the journal")
    assert [one["MESSAGE"] for one in user_manager.journal("hello.service")] == ["hello"]


def test_a_socket_unit_hands_its_socket_on(user_manager: UserManager) -> None:
    port = free_port()
    (user_manager.units / "echo.socket").write_text(f"[Socket]\nListenStream=127.0.0.1:{port}\nAccept=yes\n")
    user_manager.install("echo@.service", "[Service]\nExecStart=/bin/cat\nStandardInput=socket\n")
    user_manager.systemctl("start", "echo.socket")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"hello\n")
        assert client.recv(100) == b"hello\n"


def test_its_end_leaves_no_process_whatever_the_unit_says(tmp_path: Path) -> None:
    manager = UserManager.start(tmp_path / "home")
    try:
        stubborn = "[Service]\nKillMode=none\nExecStart=/bin/sh -c 'setsid sleep 60 & exec sleep 60'\n"
        manager.install("stubborn.service", stubborn)
        manager.systemctl("start", "stubborn.service")
        wait_until(lambda: len(manager.pids("stubborn.service")) == 2, 5, "the two did not start")
        pids = manager.pids("stubborn.service")
    finally:
        manager.stop()
    assert not [pid for pid in pids if _lives(pid)]


def _lives(pid: int) -> bool:
    """A zombie does not: nobody's child now, it is taken away by the machine's first process in its own time."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
