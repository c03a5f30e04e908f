"""Who is at the other end, asked of the kernel, with real processes at that end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from scripted import ScriptedBackend
from serving import serving, until

from protocol import peer
from protocol.peer import Gone, Owner

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who is at the other end")
NOBODY = 65534

# A client of its own process: sends, half-closes where it is told to, says that it did, and waits to be killed.
CLIENT = """
import os, signal, socket, sys
family, port, message, then = socket.AF_INET, int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3]
user = int(sys.argv[4])
if user != os.getuid(): os.setgroups([]); os.setgid(user); os.setuid(user)
s = socket.socket(family)
s.connect(("127.0.0.1", port))  # no look-up: another user may not be able to import what it needs
s.sendall(message + b"\\n")
if then == "leave": s.close(); print("sent", flush=True); sys.exit()
if then == "half-close": s.shutdown(socket.SHUT_WR)
if then == "listen":
    while data := s.recv(65536): sys.stdout.buffer.write(data)
    sys.exit()
sys.stdout.write("sent\\n"); sys.stdout.flush()
signal.pause()
"""


def client_code(port: int, message: str, then: str, user: int | None = None) -> list[str]:
    who = os.getuid() if user is None else user
    return [sys.executable, "-S", "-c", CLIENT, str(port), message, then, str(who)]


async def start_client(port: int, message: str, then: str, user: int | None = None) -> Any:
    code = client_code(port, message, then, user)
    process = await anyio.open_process(code, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/")
    if then != "listen":
        assert process.stdout is not None
        assert (await process.stdout.receive()).startswith(b"sent")
    return process


@contextmanager
def pair(family: int = socket.AF_INET) -> Iterator[tuple[socket.socket, socket.socket]]:
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.create_server((host, 0), family=family) as listener:
        client = socket.create_connection(listener.getsockname()[:2])
        server, _ = listener.accept()
        with client, server:
            yield client, server


def ask(server: socket.socket, how: Any) -> Any:
    return how(server.family, server.getpeername()[:2], server.getsockname()[:2])


@pytest.mark.parametrize("how", [peer.ask, peer._ask_netlink, peer._ask_proc])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_living_peer_has_an_owner_also_when_it_half_closed(how: Any, family: int) -> None:
    with pair(family) as (client, server):
        assert ask(server, how) == Owner(os.getuid())
        client.shutdown(socket.SHUT_WR)
        assert ask(server, how) == Owner(os.getuid())


@pytest.mark.parametrize("how", [peer.ask, peer._ask_netlink, peer._ask_proc])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_closed_peer_is_gone(how: Any, family: int) -> None:
    with pair(family) as (client, server):
        where = server.family, server.getpeername()[:2], server.getsockname()[:2]
        client.close()
        assert how(*where) == Gone()


def test_without_netlink_the_slow_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> socket.socket:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(peer, "_netlink", forbidden)
    with pair() as (_, server):
        assert ask(server, peer.ask) == Owner(os.getuid())


def test_a_system_without_netlink_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_NETLINK")
    with pair() as (_, server):
        assert ask(server, peer.ask) == peer.Untold()


async def test_what_tells_users_apart_is_opened_before_anybody_connects(tmp_path: Path) -> None:
    """Out of descriptors it could not be opened, and everybody would be let in."""
    peer._netlink().close()
    peer._netlink.cache_clear()
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        assert peer._netlink.cache_info().currsize == 1
        with anyio.fail_after(5):
            await client.ask({"type": "ping"})
    assert peer._netlink.cache_info().currsize == 0, "the fork server rehearses a server: its children would share it"


@pytest.mark.parametrize("before", [[], ["Hel"]], ids=["before the first token", "in the middle"])
@pytest.mark.parametrize("then", ["wait", "half-close"])
async def test_a_client_killed_with_9_is_cancelled_at_the_model_server(
    tmp_path: Path, before: list[str], then: str
) -> None:
    backend = ScriptedBackend(*before, never := asyncio.Event())
    async with serving(backend, tmp_path) as served:
        process = await start_client(served.port, '{"content": "x", "request_id": 1}', then)
        async with process:
            with anyio.fail_after(5):
                await until(lambda: backend.under_way)
                process.send_signal(signal.SIGKILL)
                await process.wait()
            with anyio.fail_after(1.0):  # the contract's own figure: two looks fit into it
                await until(lambda: backend.cut_short)
    assert not never.is_set()


async def test_whoever_sent_and_left_is_not_answered(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    async with serving(backend, tmp_path) as served:
        # Blocks the server's loop too: it accepts when the client has left.
        subprocess.run(
            client_code(served.port, '{"content": "x"}', "leave"), check=True, timeout=5, stdout=subprocess.PIPE
        )
        other = await served.connect()
        with anyio.fail_after(5):
            await other.ask({"type": "ping"})
            await until(lambda: served.specialist.clients == 1)
    assert backend.prompts == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("allowed", [False, True])
async def test_another_user_of_the_machine_is_forbidden_unless_named(tmp_path: Path, allowed: bool) -> None:
    backend = ScriptedBackend("x")
    async with serving(backend, tmp_path, allowed_uids=[NOBODY] if allowed else []) as served:
        message = '{"content": "x", "close": true}'
        async with await start_client(served.port, message, "listen", NOBODY) as process:
            with anyio.fail_after(5):
                heard = b"".join([part async for part in process.stdout])
                await process.wait()
    assert (b'"forbidden"' in heard, len(backend.prompts)) == (not allowed, int(allowed))
