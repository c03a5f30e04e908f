"""Sockets that are handed over: `chorus specialist run` started as a service manager starts it, by a launcher or a real one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ports import free_port
from team import ROOT, command

ACTIVATOR = shutil.which("systemd-socket-activate")

# sd_listen_fds(3), the other side: the descriptors named first become 3, 4, ... of the command that follows.
LAUNCHER = """
import fcntl, os, sys
handed = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1].split(",")]
for number, fd in enumerate(handed, 3):
    os.dup2(fd, number)
pid = os.getpid() if sys.argv[2] == "ours" else int(sys.argv[2])
os.environ |= {"LISTEN_FDS": str(len(handed)), "LISTEN_PID": str(pid)}
os.execvp(sys.argv[3], sys.argv[3:])
"""


def listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=7)


@contextmanager
def launched(folder: Path, port: int, *handed: int, pid: str = "ours") -> Iterator[subprocess.Popen[str]]:
    """`chorus specialist run apollo` with these descriptors; what it says is read from its standard error."""
    fds = ",".join(map(str, handed))
    with run(folder, [sys.executable, "-c", LAUNCHER, fds, pid], port, handed) as process:
        yield process


@contextmanager
def run(folder: Path, before: list[str], port: int, handed: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    env = {"HOME": str(folder), "CHORUS_BACKEND": "builtin", "PYTHONPATH": str(ROOT), "PATH": os.defpath}
    with subprocess.Popen(
        [*before, *command("specialist", "run", "apollo", "--port", str(port))],
        env=env,
        pass_fds=handed,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def ask(port: int, host: str = "127.0.0.1") -> bytes:
    with socket.create_connection((host, port), timeout=10) as client:
        client.sendall(b'{"type": "ping", "close": true}\n')
        return client.makefile("rb").readline()


def refusal(process: subprocess.Popen[str]) -> str:
    """What is said by one that ends at once."""
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 1, said
    return said


def test_a_socket_that_is_handed_over_is_served_and_outlives_the_process(tmp_path: Path) -> None:
    port = free_port()
    with listening("127.0.0.1", port) as ours:
        with launched(tmp_path, port, ours.fileno()) as process:
            assert b'"pong"' in ask(port)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        with socket.create_connection(("127.0.0.1", port), timeout=1):  # it waits for the next one
            pass


def test_both_families_are_served(tmp_path: Path) -> None:
    port = free_port()
    with (
        listening("127.0.0.1", port) as four,
        listening("::1", port) as six,
        launched(tmp_path, port, four.fileno(), six.fileno()),
    ):
        assert b'"pong"' in ask(port)
        assert b'"pong"' in ask(port, "::1")


def test_the_backlog_is_left_as_it_is(tmp_path: Path) -> None:
    """asyncio and a second listen(2) would change it for everybody who holds the socket."""
    port = free_port()
    with listening("127.0.0.1", port) as ours, launched(tmp_path, port, ours.fileno()):
        assert b'"pong"' in ask(port)
        # Of a listening socket, tcpi_sacked in Linux's struct tcp_info is the backlog it was given.
        assert struct.unpack_from("I", ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 28) == (7,)


def test_what_is_meant_for_another_process_is_left_alone(tmp_path: Path) -> None:
    port, other = free_port(), free_port()
    with (
        listening("127.0.0.1", other) as theirs,
        launched(tmp_path, port, theirs.fileno(), pid=str(os.getpid())) as process,
    ):
        assert process.stderr is not None
        assert f"listening on port {port}" in process.stderr.readline()
        assert b'"pong"' in ask(port)


def test_a_socket_that_does_not_listen_is_refused(tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", port))
        with launched(tmp_path, port, deaf.fileno()) as process:
            assert "cannot start apollo: descriptor 3 is a socket that does not listen" in refusal(process)


def test_a_socket_of_datagrams_is_refused(tmp_path: Path) -> None:
    port = free_port()
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, launched(tmp_path, port, datagrams.fileno()) as process:
        assert "descriptor 3 is a socket, but not of TCP" in refusal(process)


def test_a_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, launched(tmp_path, free_port(), file.fileno()) as process:
        assert "descriptor 3 is no socket (Socket operation on non-socket)" in refusal(process)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_socket_in_another_place_is_refused(tmp_path: Path, host: str) -> None:
    """Another port is a mistake in a unit; every interface would be an open door."""
    port = free_port()
    other = free_port() if host == "127.0.0.1" else port
    with listening(host, other) as theirs, launched(tmp_path, port, theirs.fileno()) as process:
        told = refusal(process)
    assert f"descriptor 3 listens on {host} port {other}, not on 127.0.0.1 port {port} or ::1 port {port}" in told
    assert "do: correct ListenStream=" in told


@pytest.mark.skipif(ACTIVATOR is None, reason="systemd-socket-activate is not installed (apt install systemd)")
def test_systemd_itself_hands_over_two_sockets(tmp_path: Path) -> None:
    port = free_port()
    before = [str(ACTIVATOR), "-l", f"127.0.0.1:{port}", "-l", f"[::1]:{port}"]
    before += [f"--setenv={name}" for name in ("HOME", "CHORUS_BACKEND", "PYTHONPATH")]
    with run(tmp_path, before, port) as process:
        assert process.stderr is not None
        while "Listening on [::1]" not in process.stderr.readline():
            assert process.poll() is None
        assert b'"pong"' in ask(port, "::1")
        assert b'"pong"' in ask(port)
