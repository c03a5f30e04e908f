"""How the gateway is asked how it is: a few lines of HTTP, and whatever may come back."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from certifying import certified
from msgspec.structs import replace
from ports import free_port

from protocol.errors import ConnectionLost, PeerError, Refused, WrongReply
from protocol.settings import GatewayConfig
from supervisor.config import load
from supervisor.fleet.asking import LONGEST_HEAD, asking
from supervisor.roster import gateway

WELL = {"type": "health_response", "ai_id": "gateway", "pid": 7, "in_flight": 3}


def answer(told: object, status: str = "200 OK", more: str = "") -> bytes:
    body = json.dumps(told).encode()
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body


def at(port: int, host: str = "127.0.0.1") -> GatewayConfig:
    return replace(gateway(load({}, None, {"HOME": "/nonexistent"})), places=[(host, port), ("::1", port)])


@asynccontextmanager
async def saying(*answers: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that has these answers, one for each request; its port, and the requests as they come."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for said in answers:
                asked.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(said)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass  # it has heard enough
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        with anyio.fail_after(10):
            yield server.sockets[0].getsockname()[1], asked


async def test_it_is_asked_again_and_again_on_one_connection() -> None:
    async with saying(answer(WELL), answer(WELL | {"in_flight": 4})) as (port, asked), asking(at(port)) as ask:
        assert [(await ask()).in_flight, (await ask()).in_flight] == [3, 4]
        with pytest.raises(ConnectionLost):
            await ask()
    assert len(asked) == 2
    assert asked[0].startswith(b"GET /health HTTP/1.1\r\n")
    assert f"\r\nHost: 127.0.0.1:{port}\r\n".encode() in asked[0]


async def test_who_listens_on_every_address_is_asked_on_this_machines_own() -> None:
    async with saying(answer(WELL)) as (port, asked), asking(at(port, "0.0.0.0")) as ask:
        assert (await ask()).pid == 7
    assert f"\r\nHost: 127.0.0.1:{port}\r\n".encode() in asked[0]


@pytest.mark.parametrize(
    "said",
    [
        answer(WELL, status="503 Service Unavailable"),
        answer({"type": "pong"}),
        answer("well"),
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n",
        b"error: this is apollo\r\n\r\n",
        b"x" * (LONGEST_HEAD + 1),
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"",
    ],
)
async def test_anything_else_is_no_answer(said: bytes) -> None:
    async with saying(said) as (port, _), asking(at(port)) as ask:
        with pytest.raises(PeerError):
            await ask()


async def test_another_answer_than_was_asked_for_is_named() -> None:
    async with saying(answer({}, status="404 Not Found")) as (port, _), asking(at(port)) as ask:
        with pytest.raises(WrongReply, match="404 Not Found"):
            await ask()


async def test_nobody_there_is_said() -> None:
    with pytest.raises(Refused):
        async with asking(at(free_port())):
            pass


async def test_one_that_speaks_tls_is_asked_so_whatever_its_certificate_says(tmp_path: Path) -> None:
    certificate, key = certified(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with saying(answer(WELL), tls=context) as (port, _):
        config = at(port)
        config = replace(config, settings=replace(config.settings, tls_certificate=str(certificate), tls_key=str(key)))
        async with asking(config) as ask:
            assert (await ask()).pid == 7
