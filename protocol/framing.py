"""Bytes into lines. No I/O, no knowledge of what a line means.

One message a line: LF ends it, a CR before the LF is dropped. A line may arrive in any number of
pieces; the work done is linear in its length whatever the pieces are, because each byte is searched once.
"""

from __future__ import annotations

from protocol.errors import LineTooLong

LF = 0x0A
CR = b"\r"
START = 64  # bytes of a line that was too long which its error tells


class LineBuffer:
    """Collects bytes and hands out whole lines.

    `limit` is the longest line in bytes, without its line end; None means no limit.
    Of a line over the limit nothing is kept: it is reported once and the rest of it is thrown away
    as it comes, so a peer that never sends LF costs no memory.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._data = bytearray()
        self._searched = 0  # bytes of _data known to hold no LF
        self._skipping = False  # inside a line that was too long

    def __len__(self) -> int:
        """Bytes held that are not yet a whole line."""
        return len(self._data)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Takes what arrived. Never fails."""
        if not self._skipping:
            self._data += data
            return

        # Searching what arrived, not what is kept: nothing is kept of a line that is being thrown away.
        data = bytes(data)
        end = data.find(LF)
        if end >= 0:
            self._skipping = False
            self._data += data[end + 1 :]

    def next_line(self) -> bytes | None:
        """The next line without its end, or None when more bytes are needed.

        Raises LineTooLong once for a line over the limit, as soon as that is certain; the next call goes on
        behind that line.
        """
        end = self._data.find(LF, self._searched)
        if end < 0:
            self._searched = len(self._data)
            if self._is_over(self._data):
                start = bytes(self._data[:START])
                self._data.clear()
                self._searched = 0
                self._skipping = True
                raise LineTooLong.over(self.limit or 0, start)
            return None

        line = bytes(self._data[:end])
        del self._data[: end + 1]  # CPython moves the start of a bytearray; nothing is copied
        self._searched = 0
        if self._is_over(line):
            raise LineTooLong.over(self.limit or 0, line[:START])
        return line.removesuffix(CR)

    def last_line(self) -> bytes | None:
        """What is left at end of input: a last line without LF, or None. Empties the buffer.

        Call it after next_line() has returned None: it looks neither for line ends nor at the limit.
        """
        line = bytes(self._data)
        self._data.clear()
        self._searched = 0
        self._skipping = False
        return line.removesuffix(CR) or None

    def _is_over(self, line: bytes | bytearray) -> bool:
        if self.limit is None or len(line) <= self.limit:
            return False
        # A line of exactly the limit may still be followed by its CR.
        return len(line) > self.limit + 1 or not line.endswith(CR)
