from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest

from protocol.errors import Unavailable
from supervisor.fleet import stand_in as module
from supervisor.fleet.stand_in import stand_in


@asynccontextmanager
async def standing_in() -> AsyncIterator[tuple[int, anyio.CancelScope]]:
    """A stand-in; yields its port, and the scope that ends it."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(stand_in, [listener], "apollo-ci", lambda: Unavailable("gone for now", retry_after=3.0))
            yield port, group.cancel_scope
            group.cancel_scope.cancel()
    assert listener.fileno() == -1


async def said_to(port: int, what: bytes) -> bytes:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(what)
        return b"".join([chunk async for chunk in stream])


async def test_json_is_answered_with_its_request_id_and_when_to_come_again() -> None:
    async with standing_in() as (port, _):
        answer = json.loads(await said_to(port, b'{"type":"chat","content":"x","request_id":"r1"}\n'))
    assert answer["type"] == "error"
    assert answer["code"] == "unavailable"
    assert answer["request_id"] == "r1"
    assert answer["ai_id"] == "apollo-ci"
    assert answer["retry_after"] == 3.0


@pytest.mark.parametrize("line", [b"{\n", b'{"request_id":[]}\n', b'{"request_id":1', b"{}\n"])
async def test_broken_json_is_answered_as_json_too(line: bytes) -> None:
    async with standing_in() as (port, _):
        answer = json.loads(await said_to(port, line))
    assert answer["code"] == "unavailable"


async def test_plain_text_is_answered_in_plain_text() -> None:
    async with standing_in() as (port, _):
        assert await said_to(port, b"hello\n") == b"error: gone for now\n"


async def test_http_is_answered_in_http() -> None:
    async with standing_in() as (port, _):
        answer = await said_to(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n")
    assert b"\r\nRetry-After: 3\r\n" in head
    assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head
    problem = json.loads(body)
    assert (problem["status"], problem["code"], problem["error"]) == (503, "unavailable", "gone for now")


async def test_who_follows_events_over_http_is_hung_up_on_and_comes_again() -> None:
    async with standing_in() as (port, _):
        assert await said_to(port, b"GET /x HTTP/1.1\r\nAccept: text/event-stream\r\n\r\n") == b""


async def test_whoever_says_nothing_is_answered_too() -> None:
    async with standing_in() as (port, _):
        assert await said_to(port, b"") == b"error: gone for now\n"


async def test_an_endless_line_is_answered_without_being_kept() -> None:
    async with standing_in() as (port, _):
        assert (await said_to(port, b"x" * 70_000)).startswith(b"error: ")


async def test_a_hundred_at_once_are_all_answered() -> None:
    answers = []

    async def ask(port: int) -> None:
        answers.append(await said_to(port, b"hello\n"))

    async with standing_in() as (port, _), anyio.create_task_group() as group:
        for _number in range(100):
            group.start_soon(ask, port)
    assert answers == [b"error: gone for now\n"] * 100


async def test_more_than_there_is_room_for_wait_and_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 1)
    async with standing_in() as (port, _), await anyio.connect_tcp("127.0.0.1", port):
        assert await said_to(port, b"hello\n") == b"error: gone for now\n"


async def test_whoever_was_accepted_is_answered_after_the_end() -> None:
    async with standing_in() as (port, ending), await anyio.connect_tcp("127.0.0.1", port) as caller:
        assert await said_to(port, b"hello\n")  # behind the first one in the queue: so that one is accepted
        ending.cancel()
        with anyio.CancelScope(shield=True):
            await caller.send(b"hello\n")
            assert await caller.receive() == b"error: gone for now\n"


async def test_a_caller_that_resets_is_no_failure() -> None:
    async with standing_in() as (port, _):
        with socket.create_connection(("127.0.0.1", port)) as rude:
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert await said_to(port, b"hello\n") == b"error: gone for now\n"
