"""Clients: four kinds for every specialist and two for the gateway, each asking over and over and writing down what came of it.

Sockets and JSON only, nothing of ours: what is measured must not be what measures. Whoever connects must be let in; whoever
is let in must hear something within ANSWER_WITHIN: an answer, an honest error, or the end of the process that had taken it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from msgspec import Struct

GATEWAY = "gateway"
ANSWER_WITHIN = 15.0  # seconds; the longest way: 2 s until it is looked for, 6 s of silence, a restart, a busy machine
HONEST = frozenset({"unavailable", "draining"})
AFTER_REFUSAL = 0.5  # seconds: whoever is told to come again later does
WIRE = ("one question", "stream", "half-closing", "kept")
HTTP = ("http", "http kept")
KINDS = (*WIRE, *HTTP)
PAUSE = {
    "one question": 0.4,
    "stream": 0.1,
    "half-closing": 0.7,
    "kept": 0.5,
    "http": 0.3,
    "http kept": 0.5,
}  # seconds between two questions, on average


class Outcome(Struct, frozen=True):
    """What came of one question, from `began` to `ended` on the monotonic clock.

    `what` is "answered", "refused", "cut", "late", "wrong", or the code of an error.
    """

    name: str
    kind: str
    what: str
    began: float
    ended: float
    detail: str = ""


class Ended(Exception):
    """What else than an answer came: an outcome's `what` and its detail."""

    def __init__(self, what: str, detail: str = "") -> None:
        super().__init__(what, detail)
        self.what, self.detail = what, detail


class Client:
    """One connection, closed by whoever opened it. Everything that goes wrong is raised as Ended."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.waited = 0.0  # the longest, in seconds

    async def say(self, line: str) -> None:
        self.writer.write(line.encode() + b"\n")
        try:
            await self.writer.drain()
        except OSError as error:
            raise Ended("cut", str(error)) from None

    def half_close(self) -> None:
        try:
            self.writer.write_eof()
        except OSError as error:
            raise Ended("cut", str(error)) from None

    async def line(self) -> bytes:
        line = await self._arrives(self.reader.readline())
        if not line.endswith(b"\n"):
            raise Ended("cut", "the connection ended")
        return line

    async def exactly(self, count: int) -> bytes:
        try:
            return await self._arrives(self.reader.readexactly(count))
        except asyncio.IncompleteReadError:
            raise Ended("cut", "the connection ended") from None

    async def rest(self) -> bytes:
        """Everything up to the end."""
        return await self._arrives(self.reader.read())

    async def _arrives(self, reading: Coroutine[Any, Any, bytes]) -> bytes:
        began = time.monotonic()
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                return await reading
        except TimeoutError:
            raise Ended("late", f"nothing came for {ANSWER_WITHIN:g} s") from None
        except OSError as error:
            raise Ended("cut", str(error)) from None
        finally:
            self.waited = max(self.waited, time.monotonic() - began)

    async def message(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self.line())
        if message["type"] in ("error", "stream_error"):
            raise Ended(message["code"], message["error"])
        return message


@asynccontextmanager
async def connected(port: int, note_wait: Callable[[float], None] = lambda _: None) -> AsyncIterator[Client]:
    """A connection. `note_wait` hears how long the longest wait for a line of it was."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError as error:
        raise Ended("refused", str(error)) from None
    except OSError as error:
        raise Ended("cut", str(error)) from None
    client = Client(reader, writer)
    try:
        yield client
    finally:
        writer.transport.abort()
        note_wait(client.waited)
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def health(port: int) -> dict[str, Any]:
    """What whoever accepts there says of itself; raises Ended."""
    async with connected(port) as client:
        await client.say('{"type":"health","request_id":1}')
        return await client.message()


async def http_health(port: int) -> dict[str, Any]:
    """The same of the gateway, which speaks HTTP."""
    async with connected(port) as client:
        return await asked_over_http(client)


async def asked_over_http(client: Client) -> dict[str, Any]:
    await client.say("GET /health HTTP/1.1\r\nHost: localhost\r\n\r")
    status, length = await client.line(), 0
    while line := (await client.line()).strip():
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    told: dict[str, Any] = json.loads(await client.exactly(length))
    if status.split()[1] != b"200":
        raise Ended(told["code"], told["error"])
    return told


class Load:
    """All clients of a team. `told` hears of every outcome."""

    def __init__(self, ports: dict[str, int], told: Callable[[Outcome], None]) -> None:
        self.ports = ports
        self.counts: Counter[tuple[str, str]] = Counter()
        self.longest = 0.0
        self._told = told

    async def run(self) -> None:
        """Asks until cancelled."""
        ways = {
            "one question": self._one_question,
            "stream": self._stream,
            "half-closing": self._half_closing,
            "kept": self._kept,
            "http": self._http,
            "http kept": self._http_kept,
        }
        async with asyncio.TaskGroup() as group:
            for name, port in self.ports.items():
                for kind in HTTP if name == GATEWAY else WIRE:
                    group.create_task(self._over_and_over(name, kind, ways[kind], port))

    async def _over_and_over(self, name: str, kind: str, way: Callable[[int], Any], port: int) -> None:
        rng = random.Random(f"{name} {kind}")
        while True:
            await asyncio.sleep(rng.uniform(0.5, 1.5) * PAUSE[kind])
            if await self._note(name, kind, way(port)) in HONEST:
                await asyncio.sleep(AFTER_REFUSAL)

    async def _note(self, name: str, kind: str, question: Any) -> str:
        began = time.monotonic()
        what, detail = "answered", ""
        try:
            await question
        except Ended as end:
            what, detail = end.what, end.detail
        except (ValueError, KeyError, AssertionError) as error:
            what, detail = "wrong", repr(error)
        self.counts[kind, what] += 1
        self._told(Outcome(name, kind, what, began, time.monotonic(), detail))
        return what

    def _note_wait(self, seconds: float) -> None:
        self.longest = max(self.longest, seconds)

    async def _one_question(self, port: int) -> None:
        async with connected(port, self._note_wait) as client:
            await client.say(
                '{"type":"chat","request_id":"q","content":"hello","options":{"max_tokens":3},"close":true}'
            )
            answer = await client.message()
            assert answer["type"] == "chat_response", answer
            assert answer["content"], answer

    async def _stream(self, port: int) -> None:
        async with connected(port, self._note_wait) as client:
            await client.say(
                '{"type":"chat","request_id":"s","stream":true,"content":"say it slowly","options":{"max_tokens":60}}'
            )
            chunks = 0
            while True:
                message = await client.message()
                if message["type"] == "stream_chunk":
                    assert message["chunk_index"] == chunks, message
                    chunks += 1
                elif message["type"] == "stream_end":
                    assert chunks, message
                    return

    async def _half_closing(self, port: int) -> None:
        async with connected(port, self._note_wait) as client:
            await client.say("/info")
            client.half_close()
            answer = await client.rest()
            if answer.startswith(b"error: "):
                raise Ended("unavailable" if b"is not running" in answer else "draining", answer.decode())
            if not answer.endswith(b"\n"):
                raise Ended("cut", repr(answer))

    async def _kept(self, port: int) -> None:
        """Some questions on one connection, with pauses between them."""
        async with connected(port, self._note_wait) as client:
            for number in range(10):
                await client.say(f'{{"type":"ping","request_id":{number}}}')
                answer = await client.message()
                assert answer["request_id"] == number, answer
                await asyncio.sleep(PAUSE["kept"])

    async def _http(self, port: int) -> None:
        async with connected(port, self._note_wait) as client:
            assert (await asked_over_http(client))["ai_id"] == GATEWAY

    async def _http_kept(self, port: int) -> None:
        async with connected(port, self._note_wait) as client:
            for _ in range(10):
                assert (await asked_over_http(client))["ai_id"] == GATEWAY
                await asyncio.sleep(PAUSE["http kept"])
