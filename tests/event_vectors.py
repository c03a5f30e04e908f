"""What bytes mean as server-sent events: our own reader is held to this, and so are Chromium and Node.js, as its witnesses."""

from __future__ import annotations

from protocol.events import Event

A = Event("message", "a", "")

# Each a whole connection, and what its reader is told.
VECTORS: dict[str, tuple[bytes, list[Event]]] = {
    "lf": (b"data: a\n\n", [A]),
    "crlf": (b"data: a\r\n\r\n", [A]),
    "cr": (b"data: a\r\r", [A]),
    "mixed ends": (
        b"data: a\r\ndata: b\rdata: c\n\r\ndata: d\n\r",
        [Event("message", "a\nb\nc", ""), Event("message", "d", "")],
    ),
    "cr then crlf": (b"data: a\r\r\ndata: b\n\n", [A, Event("message", "b", "")]),
    "crlf is one end": (b"data: a\r\ndata: b\r\n\r\n", [Event("message", "a\nb", "")]),
    "no other ends": (
        "data: a\u2028b\u2029c\u0085d\x0be\x0cf\n\n".encode(),
        [Event("message", "a\u2028b\u2029c\u0085d\x0be\x0cf", "")],
    ),
    "name": (b"event: token\ndata: a\n\n", [Event("token", "a", "")]),
    "name behind data": (b"data: a\nevent: token\n\n", [Event("token", "a", "")]),
    "the last name counts": (b"event: x\nevent: token\ndata: a\n\n", [Event("token", "a", "")]),
    "empty name": (b"event: x\nevent:\ndata: a\n\n", [A]),
    "a name is for one event": (b"event: x\ndata: a\n\ndata: a\n\n", [Event("x", "a", ""), A]),
    "a name without data is gone": (b"event: x\n\ndata: a\n\n", [A]),
    "no data, no event": (b"event: done\n\ndata: a\n\n", [A]),
    "empty data": (b"event: done\ndata:\n\n", [Event("done", "", "")]),
    "empty data without a colon": (b"event: done\ndata\n\n", [Event("done", "", "")]),
    "two empty lines of data": (b"data\ndata\n\n", [Event("message", "\n", "")]),
    "one space goes": (
        b"data:a\n\ndata:  a\n\ndata:\ta\n\n",
        [A, Event("message", " a", ""), Event("message", "\ta", "")],
    ),
    "colons in a value": (b"data: a:b: c\n\n", [Event("message", "a:b: c", "")]),
    "comments": (b": one\n:\ndata: a\n:data: b\n\n:\n\n", [A]),
    "unknown fields": (b"datas: x\n data: x\nDATA: x\nx\ndata: a\n\n", [A]),
    "ids stay": (
        b"id: 1\ndata: a\n\ndata: b\n\nid: 2\ndata: c\n\n",
        [Event("message", "a", "1"), Event("message", "b", "1"), Event("message", "c", "2")],
    ),
    "an id alone moves the cursor": (b"id: 7\n\ndata: a\n\n", [Event("message", "a", "7")]),
    "an empty id forgets": (
        b"id: 1\ndata: a\n\nid\ndata: b\n\n",
        [Event("message", "a", "1"), Event("message", "b", "")],
    ),
    "an id with NUL is none": (b"id: 1\nid: 2\x003\ndata: a\n\n", [Event("message", "a", "1")]),
    "bom": (b"\xef\xbb\xbfdata: a\n\n", [A]),
    "only one bom": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: a\n\n", [A]),
    "a bom later is text": (b"data: a\n\n\xef\xbb\xbfdata: b\n\ndata: a\n\n", [A, A]),
    "no bom, only its begin": (b"\xef\xbbdata: b\n\ndata: a\n\n", [A]),
    "utf-8": ("data: ä→😀\n\n".encode(), [Event("message", "ä→😀", "")]),
    "not utf-8": (b"data: \xff\xf0\x9f\xff\xe2\x82\n\n", [Event("message", "\ufffd\ufffd\ufffd\ufffd", "")]),
    "retry": (b"retry: 1\ndata: a\n\nretry: 2x\nretry: -3\nretry:\n\ndata: a\n\n", [A, A]),
    "cut before the blank line": (b"data: a\n\ndata: b\n", [A]),
    "cut in a line": (b"data: a\n\nid: 9\ndata: b", [A]),
    "cut behind an id": (b"id: 1\ndata: a\n\nid: 9\n", [Event("message", "a", "1")]),
    "nothing": (b"", []),
}
