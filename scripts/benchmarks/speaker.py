"""A look-alike of a specialist, as light as one can be: it reads a question of the wire, and streams tokens.

The question says what is wanted, as `key=value` words: `tokens` in all, `rate` a second (0: as fast as they are taken, and
then `together` of them in one write), `size` of each in characters, `hold` (1: it says one token and then nothing). A token is
the time at which it was written, so that whoever reads it knows how long it was on its way.

usage: speaker.py     prints its port when it listens; `{"type": "count"}` is answered by how many answers were cut short
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

ROOM = 65_536  # bytes that wait in the transport before the next tokens do

open_answers: set[Answer] = set()
counts = {"whole": 0, "cut": 0}


class Answer(asyncio.Protocol):
    """One connection, and the one answer on it."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._input = b""
        self._said = 0
        self._tokens = 0
        self._is_full = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(ROOM)

    def data_received(self, data: bytes) -> None:
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            self._asked(json.loads(line))

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        counts["cut"] += self._said < self._tokens
        open_answers.discard(self)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        if not self._rate and not self._hold and self._said < self._tokens:
            self._rush()

    def _asked(self, message: dict[str, Any]) -> None:
        if message["type"] == "count":
            self.transport.write(json.dumps({**counts, "open": len(open_answers)}).encode() + b"\n")
        elif message["type"] == "cancel":
            self._stop()
        elif message["type"] == "chat":
            wish = dict(word.split("=") for word in message["content"].split())
            self._tokens, self._rate = int(wish.get("tokens", 1)), float(wish.get("rate", 0))
            self._padding = b"x" * int(wish.get("size", 0))
            self._together, self._hold = int(wish.get("together", 1)), wish.get("hold") == "1"
            self._said = 0
            self._id = json.dumps(message["request_id"]).encode()
            open_answers.add(self)
            self.transport.write(
                b'{"type":"stream_start","request_id":%b,"ai_id":"apollo-ci","model":"tiny"}\n' % self._id
            )
            if self._rate:
                self._began = self._loop.time()
                self._tick()
            elif self._hold:
                self._say(1)
            else:
                self._rush()

    def _tick(self) -> None:
        self._say(1)
        if self._said < self._tokens:
            self._timer = self._loop.call_at(self._began + self._said / self._rate, self._tick)

    def _rush(self) -> None:
        while self._said < self._tokens and not self._is_full and not self.transport.is_closing():
            self._say(self._together)

    def _say(self, count: int) -> None:
        now, first = time.monotonic_ns(), self._said
        self._said = min(first + count, self._tokens)
        start = b'{"type":"stream_chunk","request_id":%b,"chunk_index":' % self._id
        lines = [b'%b%d,"content":"%d %b"}\n' % (start, at, now, self._padding) for at in range(first, self._said)]
        if self._said == self._tokens and not self._hold:
            lines.append(
                b'{"type":"stream_end","request_id":%b,"ai_id":"apollo-ci","content":"","response":"","model":"tiny",'
                b'"context":{},"timing":{"queued_ms":0.0,"total_ms":1.0},"latency":0.001,"done_reason":"stop",'
                b'"metadata":{}}\n' % self._id
            )
            counts["whole"] += 1
            open_answers.discard(self)
        self.transport.write(b"".join(lines))

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
