"""Server-sent events as bytes, and back. Pure; the format is the HTML standard's section 9.2, checked against Chromium.

A frame is one event, encoded once and shared by everybody who reads it. `event:` comes before `data:`, and data is one line of
JSON, since that is what simple readers expect.
"""

from __future__ import annotations

from typing import Any

import msgspec

RETRY = b"retry: 500\n"  # milliseconds until EventSource reconnects; put before the first frame that a reader is sent
COMMENT = b":\n"  # says that we are alive; no blank line ends it, which some readers take for an event without data

# Not line ends of server-sent events, but Python's splitlines() and others take them for such.
_SEPARATORS = (("\u2028", rb"\u2028"), ("\u2029", rb"\u2029"), ("\u0085", rb"\u0085"))
_ESCAPED = [(separator.encode(), escaped) for separator, escaped in _SEPARATORS]
_encode = msgspec.json.Encoder().encode


def json_line(value: Any) -> bytes:
    """JSON on one line, whatever reads the lines."""
    data = _encode(value)
    if not data.isascii():
        for separator, escaped in _ESCAPED:
            data = data.replace(separator, escaped)
    return data


def frame(event: str, data: bytes, cursor: str = "") -> bytes:
    """One event; without a `cursor` it leaves a reader's place as it is, and without a name it is a `message`."""
    head = f"id: {cursor}\n" if cursor else ""
    if event:
        head += f"event: {event}\n"
    return b"%bdata: %b\n\n" % (head.encode(), data)


def fields(one: bytes) -> tuple[str, bytes]:
    """The name and the data of a frame that `frame` made."""
    name, data = "", b""
    for line in one.split(b"\n"):
        if line.startswith(b"event: "):
            name = line[7:].decode()
        elif line.startswith(b"data: "):
            data = line[6:]
    return name, data
