"""What a connection's first bytes give away. Pure.

A web page can make a browser send bytes to any port of localhost. What it sends begins with an HTTP request line or a TLS
ClientHello, so those two are refused in their own language before anything reaches a model.
"""

from __future__ import annotations

import re

import msgspec

# A person may well write "explain that HTTP/1.1"; a request's target is a path, a URL, an authority or *.
_HTTP = re.compile(rb"[A-Za-z]{1,24} (/\S*|\*|[a-z]+://\S+|\S+:\d+) HTTP/\d(\.\d)?\s*$")
_HTTP_START = re.compile(rb"[A-Za-z]{1,24} (/|[a-z]+://)\S*$")
_HANDSHAKE, _MAJOR_VERSION = 0x16, 0x03

# A fatal alert, protocol_version, as TLS 1.0 writes it (RFC 8446, 6): every client reads that.
TLS_REFUSAL = bytes([0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x46])


def is_http(line: bytes) -> bool:
    """Whether a first line is an HTTP request line."""
    return _HTTP.match(line) is not None


def begins_http(start: bytes) -> bool:
    """Whether a first line that was too long to be kept may be an HTTP request line: a page chooses how long its URL is."""
    return _HTTP_START.match(start) is not None


def is_tls(data: bytes) -> bool:
    """Whether first bytes are a TLS handshake record. One byte is enough: no text begins with it."""
    return data[:1] == bytes([_HANDSHAKE]) and (len(data) == 1 or data[1] == _MAJOR_VERSION)


def http_refusal(name: str, port: int) -> bytes:
    """The one answer an HTTP client gets."""
    sentence = (
        f"this is {name}, which speaks newline-delimited JSON or plain text, not HTTP: "
        f"use nc localhost {port}, or the gateway for HTTP"
    )
    body = msgspec.json.encode({"error": sentence, "code": "bad_request"}) + b"\n"
    head = (
        "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
