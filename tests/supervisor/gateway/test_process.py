"""The gateway's process: it ends when it is told to, and not before what it has begun; what it listens on is others' too."""

from __future__ import annotations

import errno
import http.client
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from keeping import BACKEND, Kept, fork_server, gone, keeping
from msgspec.structs import replace
from ports import GATEWAY_OFFSET, free_port_base
from surviving import Callers

from protocol.settings import GatewayConfig
from supervisor.config import load
from supervisor.fleet.inbox import Command
from supervisor.fleet.lifecycle import State
from supervisor.roster import gateway

READY = (State.READY,)


def slow(folder: Path, **said: Any) -> GatewayConfig:
    """A gateway with a route that takes its time."""
    port = free_port_base(["apollo"]) + GATEWAY_OFFSET
    config = gateway(load({"gateway.port": port}, None, {"HOME": str(folder)}))
    said = {"module": "slow_gateway", "grace": 5.0, "log_dir": str(folder / "logs")} | said
    return replace(config, **said)


@contextmanager
def slow_answer(config: GatewayConfig, until: Path) -> Iterator[http.client.HTTPResponse]:
    """An answer that has begun and ends when there is such a file."""
    with closing(http.client.HTTPConnection("127.0.0.1", config.port, timeout=20)) as connection:
        connection.request("GET", f"/slow?until={until}")
        answer = connection.getresponse()
        assert answer.readline() == b"begun\n"
        yield answer


async def closed(config: GatewayConfig) -> None:
    """Returns when nobody listens there any more."""
    with anyio.fail_after(10):
        while True:
            with socket.socket() as client:
                client.settimeout(0.02)  # where the queue of a listener is full, the kernel tries again after a second
                if client.connect_ex(("127.0.0.1", config.port)) == errno.ECONNREFUSED:
                    return
            await anyio.lowlevel.checkpoint()


def logged(folder: Path) -> str:
    return (folder / "logs/gateway.log").read_text()


async def ready(kept: Kept) -> int:
    """The pid of a gateway that has just been started."""
    kept.keeper.tell(Command("start", "asked to start"))
    pid = (await kept.until_state(*READY)).pid
    assert pid is not None
    return pid


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with fork_server(tmp_path, "import sys; sys.path.append('tests')\n") as found:
        yield found


async def test_a_restart_finishes_what_is_under_way_and_refuses_nobody(tmp_path: Path, path: Path) -> None:
    config = slow(tmp_path, grace=30.0)
    async with keeping(path, config, grace=30.0) as [kept]:
        old = await ready(kept)
        with slow_answer(config, tmp_path / "go") as answer, Callers([config.port]) as callers:
            kept.keeper.tell(Command("restart", "asked to restart"))
            assert await kept.new_pid(old) != old
            (tmp_path / "go").touch()
            assert answer.read() == b"done\n"
        await gone(old)
        assert callers.refused == []
        assert kept.registry.report([]).backend == BACKEND, "what a gateway answers with is not the team's"
    assert "stopped in good order" in logged(tmp_path)


async def test_a_second_term_ends_the_grace(tmp_path: Path, path: Path) -> None:
    config = slow(tmp_path, grace=600.0)
    async with keeping(path, config, grace=600.0) as [kept]:
        pid = await ready(kept)
        with slow_answer(config, tmp_path / "never") as answer:
            kept.keeper.tell(Command("stop", "asked to stop"))
            await closed(config)
            os.kill(pid, signal.SIGTERM)
            with pytest.raises(http.client.IncompleteRead):
                answer.read()
        await kept.until_state(State.STOPPED)
    assert "stopped in good order" in logged(tmp_path)


async def test_what_does_not_end_within_its_grace_is_ended(tmp_path: Path, path: Path) -> None:
    config = slow(tmp_path, grace=0.1)
    async with keeping(path, config, grace=600.0) as [kept]:
        pid = await ready(kept)
        with slow_answer(config, tmp_path / "never") as answer:
            os.kill(pid, signal.SIGTERM)  # by somebody else than its keeper, who would have it wait
            with pytest.raises(http.client.IncompleteRead):
                answer.read()
        await gone(pid)


async def test_whoever_was_accepted_just_before_the_end_still_has_its_first_words(tmp_path: Path, path: Path) -> None:
    config = slow(tmp_path)
    async with keeping(path, config) as [kept]:
        pid = await ready(kept)
        with socket.create_connection(("127.0.0.1", config.port), 10) as client:
            client.sendall(b"GET /heal")
            kept.keeper.tell(Command("stop", "asked to stop"))
            await closed(config)
            client.sendall(b"th HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with client.makefile("rb") as answer:
                assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
        await gone(pid)


async def test_who_only_rests_does_not_hold_up_the_end(tmp_path: Path, path: Path) -> None:
    config = slow(tmp_path, grace=600.0)
    async with keeping(path, config, grace=600.0) as [kept]:
        pid = await ready(kept)
        with socket.create_connection(("127.0.0.1", config.port), 10) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
            kept.keeper.tell(Command("stop", "asked to stop"))
            await gone(pid)


async def test_who_only_rests_is_hung_up_on_while_answers_go_on(tmp_path: Path, path: Path) -> None:
    config = slow(tmp_path, grace=600.0)
    async with keeping(path, config, grace=600.0) as [kept]:
        pid = await ready(kept)
        with (
            slow_answer(config, tmp_path / "go") as answer,
            socket.create_connection(("127.0.0.1", config.port), 10) as client,
        ):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
            kept.keeper.tell(Command("stop", "asked to stop"))
            assert await anyio.to_thread.run_sync(client.recv, 65536) == b""
            (tmp_path / "go").touch()
            assert answer.read() == b"done\n"
        await gone(pid)


async def test_a_gateway_that_cannot_serve_says_why_and_is_tried_again(tmp_path: Path, path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    config = slow(tmp_path)
    files = {"tls_certificate": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "cert.pem")}
    async with keeping(path, replace(config, settings=replace(config.settings, **files))) as [kept]:
        kept.keeper.tell(Command("start", "asked to start"))
        seen = await kept.until_state(State.FAILED)
        assert f"{tmp_path}/cert.pem are no certificate with its key" in (seen.last_error or "")
        assert seen.remedy == "chorus logs gateway"
