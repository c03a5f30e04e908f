"""Many clients of a streaming route, as light as they can be: raw asyncio, nothing decoded, tokens found by a pattern.

usage: readers.py OPTIONS     an object of JSON with the fields of `Reading`; prints one of `Read` when all answers have ended

They ask one after the other over `ramp` seconds. A token is the time at which it was written somewhere else on this machine;
delays count from when all have asked until the first answer ends, so that all are under way.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
import time

import msgspec
from msgspec import Struct, field

TOKEN = re.compile(rb'"content":"(\d{9,} [^"]*)","metadata":\{"chunk_index":(\d+)\}')
STAMP = re.compile(rb"\d{9,}(?= )")  # more than one where a specialist has put tokens together
SMALL = 4096  # bytes that the kernel takes for one who never reads


class Reading(Struct, frozen=True, kw_only=True):
    """What to do: each asks `answers` times, one after the other.

    Those who do not read send their request and leave everything else to the kernel, for `seconds`.
    """

    port: int
    paths: list[str]  # in turns
    question: str
    count: int = 1
    answers: int = 1
    ramp: float = 0.0
    is_read: bool = True
    seconds: float = 60.0


class Read(Struct, kw_only=True):
    """What came. Delays in seconds, sorted. `lost` are tokens whose number was skipped, or that never came."""

    statuses: dict[str, int] = field(default_factory=dict)
    whole: int = 0  # answers that had their end
    cut: int = 0  # connections that were ended in the middle
    tokens: int = 0
    lost: int = 0
    took: float = 0.0  # from the first question to the last byte
    cpu: float = 0.0
    delays: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One connection with one question."""

    transport: asyncio.Transport

    def __init__(self, crowd: Crowd, path: str) -> None:
        self.crowd = crowd
        self._request = crowd.request(path)
        self.over = crowd.loop.create_future()
        self._rest = b""
        self._next = 0
        self._answers = 0
        self._has_status = False  # looked at

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if not self.crowd.reading.is_read:
            transport.pause_reading()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now, crowd = time.monotonic_ns(), self.crowd
        if not self._has_status:
            self._has_status = True
            status = data[9:12].decode()
            crowd.read.statuses[status] = crowd.read.statuses.get(status, 0) + 1
        data = self._rest + data
        end = data.rfind(b"\n\n") + 2
        if end < 2:
            self._rest = data
            return
        self._rest = data[end:]
        for stamps, number in TOKEN.findall(data, 0, end):
            self._took(now, STAMP.findall(stamps), int(number))
        if b"event: done" in data:
            crowd.read.whole += 1
            crowd.is_full = False
            self._answers += 1
            self._next = 0
            if self._answers < crowd.reading.answers:
                self.transport.write(self._request)
            else:
                self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self.crowd.read.cut += not self.over.done()
        self._finish()

    def _took(self, now: int, stamps: list[bytes], number: int) -> None:
        crowd = self.crowd
        crowd.read.tokens += len(stamps)
        crowd.read.lost += number - self._next
        self._next = number + 1
        if crowd.is_full:
            crowd.read.delays += [(now - int(stamp)) / 1e9 for stamp in stamps]

    def _finish(self) -> None:
        if not self.over.done():
            self.over.set_result(None)
            self.transport.close()


class Crowd:
    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.read = Read()
        self.is_full = False
        self.loop = asyncio.get_running_loop()

    def request(self, path: str) -> bytes:
        body = json.dumps({"message": self.reading.question}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)

    async def run(self) -> Read:
        reading, began = self.reading, self.loop.time()
        clients = []
        for number in range(reading.count):
            await asyncio.sleep(began + reading.ramp * number / reading.count - self.loop.time())
            clients.append(await self._client(reading.paths[number % len(reading.paths)]))
        self.is_full = True
        print("asked", flush=True)
        await asyncio.wait([one.over for one in clients], timeout=reading.seconds)
        self.read.took = self.loop.time() - began
        self.read.cpu = time.process_time()
        self.read.delays.sort()
        return self.read

    async def _client(self, path: str) -> Client:
        raw = socket.socket()
        raw.setblocking(False)
        if not self.reading.is_read:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        await self.loop.sock_connect(raw, ("127.0.0.1", self.reading.port))
        _, client = await self.loop.create_connection(lambda: Client(self, path), sock=raw)
        return client


async def main() -> None:
    print(msgspec.json.encode(await Crowd(msgspec.json.decode(sys.argv[1], type=Reading)).run()).decode())


if __name__ == "__main__":
    asyncio.run(main())
