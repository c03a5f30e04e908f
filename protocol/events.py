"""Bytes into server-sent events, by the rules of the HTML standard's section 9.2.6. No I/O.

Checked against Chromium where readers disagree: a block without `data` moves the cursor and is no event, one with an empty
`data` is one; an id is in force only when its block is whole; what the end of input cuts off never was.
"""

from __future__ import annotations

import re

from msgspec import Struct

from protocol.errors import WrongReply

BOM = b"\xef\xbb\xbf"
LF = 0x0A
_end_of_line = re.compile(rb"[\r\n]")
_RETRY_DIGITS = 12  # of a number of milliseconds; more than that is for ever


class Event(Struct, frozen=True):
    """One event. `id` is where its reader then stands: its own id, or the last one before it."""

    name: str
    data: str
    id: str


class EventBuffer:
    """Collects bytes and hands out whole events.

    `limit` is the longest line, and the most data of one event, in bytes; a peer that never ends one costs no more memory.
    `last_id` is the id of the last whole block, or of the connection before this one. `retry` is how many seconds the peer
    asks to be left alone for when the connection is lost, None where it has not said.
    """

    def __init__(self, limit: int, last_id: str = "", retry: float | None = None) -> None:
        self.last_id = last_id
        self.retry = retry
        self._limit = limit
        self._bytes = bytearray()
        self._searched = 0  # bytes known to hold no end of a line
        self._is_first = True  # line
        self._is_behind_cr = False
        self._id = last_id  # in force with the next blank line
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0  # of the data

    def feed(self, data: bytes) -> None:
        """Takes what arrived. Never fails."""
        self._bytes += data

    def next_event(self) -> Event | None:
        """The next event, or None when more bytes are needed. Raises WrongReply for one over the limit: hang up then."""
        while (line := self._next_line()) is not None:
            if line:
                self._take(line)
            elif (event := self._block()) is not None:
                return event
        return None

    def _next_line(self) -> bytes | None:
        if self._is_behind_cr and self._bytes:
            self._is_behind_cr = False
            if self._bytes[0] == LF:
                del self._bytes[0]
        found = _end_of_line.search(self._bytes, self._searched)
        if found is None:
            self._searched = len(self._bytes)
            self._bound(self._searched)
            return None
        end, self._is_behind_cr = found.start(), found[0] == b"\r"
        del found  # it holds the bytearray, which cannot be cut then
        line = bytes(self._bytes[:end])
        del self._bytes[: end + 1]  # CPython moves the start of a bytearray; nothing is copied
        self._searched = 0
        self._bound(len(line))
        if self._is_first:
            self._is_first = False
            return line.removeprefix(BOM)
        return line

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")  # a comment has no name
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                self._data.append(value)
                self._size += len(value) + 1
                self._bound(self._size)
            case b"event":
                self._name = value
            case b"id" if b"\0" not in value:
                self._id = _text(value)
            case b"retry" if value.isdigit():
                self.retry = int(value.lstrip(b"0")[:_RETRY_DIGITS] or b"0") / 1000

    def _block(self) -> Event | None:
        """What a blank line ends."""
        self.last_id = self._id
        name, data = self._name, self._data
        self._name, self._data, self._size = b"", [], 0
        return Event(_text(name) or "message", _text(b"\n".join(data)), self._id) if data else None

    def _bound(self, size: int) -> None:
        if size > self._limit:
            raise WrongReply(f"an event is longer than {self._limit} bytes, which is nothing that was asked for")


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
