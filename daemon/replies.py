"""How an answer is told while it grows: as JSON stream lines, as plain text, or not at all before it is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from daemon.backends import Piece, Waiting
from protocol.exchange import Exchange
from protocol.messages import Heartbeat, Reply, RequestId, StreamChunk, StreamStart, StreamStatus

HEARTBEAT_AFTER = 3.0  # seconds of silence in a stream

# A terminal obeys control bytes; what a model says must not. Newline and tab stay, DEL and the C1 set go with the rest.
_HARMLESS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}
_HARMLESS[0x0D] = ""


def harmless(text: str) -> str:
    """The text as a terminal may see it."""
    return text.translate(_HARMLESS)


class Quiet:
    """Says nothing before the answer is whole."""

    started_stream = False

    def started(self, model: str) -> None:
        pass

    def waiting(self, waiting: Waiting) -> None:
        pass

    def piece(self, piece: Piece) -> None:
        pass

    def close(self) -> None:
        pass


class JsonStream:
    """Tells an answer as stream lines, through `send`. Whoever made it closes it."""

    def __init__(self, send: Callable[[Reply], None], request_id: RequestId | None, ai_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._ai_id = ai_id
        self.exchange = Exchange()
        self.started_stream = False
        self._loop = asyncio.get_running_loop()
        self._spoke = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def started(self, model: str) -> None:
        self.started_stream = True
        self.tell(StreamStart(request_id=self._request_id, ai_id=self._ai_id, model=model))
        self._timer = self._loop.call_later(HEARTBEAT_AFTER, self._beat)

    def waiting(self, waiting: Waiting) -> None:
        self.tell(StreamStatus(request_id=self._request_id, phase=waiting.phase, position=waiting.position))

    def piece(self, piece: Piece) -> None:
        # One write for each read upstream: what arrived together is sent together.
        if piece.thinking:
            self.tell(StreamChunk(self._request_id, chunk_index=self.exchange.chunks, thinking=piece.thinking))
        if piece.content:
            self.tell(StreamChunk(self._request_id, chunk_index=self.exchange.chunks, content=piece.content))

    def tell(self, reply: Reply) -> None:
        """Sends the next line of this stream; the exchange refuses one that must not come here."""
        self.exchange.advance(reply)
        self._spoke = self._loop.time()
        self._send(reply)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        silent_for = self._loop.time() - self._spoke
        if silent_for >= HEARTBEAT_AFTER:
            self.tell(Heartbeat(self._request_id))
            silent_for = 0.0
        self._timer = self._loop.call_later(HEARTBEAT_AFTER - silent_for, self._beat)


class PlainText:
    """Tells an answer as bare text, through `write`. Thinking is not shown; control bytes are made harmless.

    `end_line` makes the connection's next byte the first one of a line.
    """

    started_stream = False

    def __init__(self, write: Callable[[bytes], None], end_line: Callable[[], None]) -> None:
        self._write = write
        self.end = end_line  # ends the answer with a newline

    def started(self, model: str) -> None:
        pass

    def waiting(self, waiting: Waiting) -> None:
        pass

    def piece(self, piece: Piece) -> None:
        self._write(harmless(piece.content).encode(errors="replace"))

    def line(self, text: str) -> None:
        """A line of our own: behind what was said so far, never in the middle of a line of it."""
        self.end()
        self._write(harmless(text).encode(errors="replace") + b"\n")

    def close(self) -> None:
        pass
