"""Answers in the place of a specialist or a gateway that cannot: nobody waits behind a port for nothing."""

from __future__ import annotations

import asyncio
import math
import re
import socket
from collections.abc import Callable

import anyio
import msgspec

from protocol.codec import encode, error_reply
from protocol.errors import Unavailable
from protocol.messages import RequestId

FIRST_LINE_WITHIN = 1.0  # seconds; then the answer goes out whatever was asked
LAST_WORDS = 0.5  # seconds for the caller to read it before the connection is closed for good
RETRY_ACCEPT_AFTER = 0.1
MOST = 256  # connections at a time; the rest wait in the backlog
_HTTP = re.compile(rb"^[A-Z]+ \S+ HTTP/")


class _Head(msgspec.Struct):
    request_id: RequestId | None = None


async def stand_in(listeners: list[socket.socket], ai_id: str, say: Callable[[], Unavailable]) -> None:
    """Answers everybody who connects with `say()`, until cancelled. Closes the listeners at once then.

    Whoever had been accepted is still answered, so it may return up to FIRST_LINE_WITHIN and LAST_WORDS later.
    """
    places = asyncio.Semaphore(MOST)

    async def accept(listener: socket.socket) -> None:
        with listener:
            listener.setblocking(False)
            while True:
                await places.acquire()
                try:
                    # Not sock_accept: when that is cancelled, it may have accepted somebody who is then dropped.
                    await anyio.wait_readable(listener)
                    caller, _ = listener.accept()
                except BlockingIOError:
                    places.release()  # the specialist itself, just started, was faster
                    continue
                except OSError:
                    # Out of descriptors, or aborted before it was accepted: the next one may go well.
                    places.release()
                    await anyio.sleep(RETRY_ACCEPT_AFTER)
                    continue
                answering.start_soon(answer, caller)

    async def answer(caller: socket.socket) -> None:
        try:
            with caller, anyio.move_on_after(FIRST_LINE_WITHIN + LAST_WORDS, shield=True):
                await _answer(caller, ai_id, say())
        except OSError:
            pass  # gone before it was told
        finally:
            places.release()

    async with anyio.create_task_group() as answering:
        for listener in listeners:
            answering.start_soon(accept, listener)


async def _answer(caller: socket.socket, ai_id: str, error: Unavailable) -> None:
    loop = asyncio.get_running_loop()
    caller.setblocking(False)
    asked = b""
    with anyio.move_on_after(FIRST_LINE_WITHIN):
        while not _is_whole(asked) and len(asked) < 65536 and (data := await loop.sock_recv(caller, 65536)):
            asked += data
    await loop.sock_sendall(caller, _said(asked, ai_id, error))
    caller.shutdown(socket.SHUT_WR)
    with anyio.move_on_after(LAST_WORDS):
        while await loop.sock_recv(caller, 65536):
            pass


def _is_whole(asked: bytes) -> bool:
    """Whether a line has come, or the whole head of an HTTP request."""
    line, end, _ = asked.partition(b"\n")
    return bool(end) and (b"\r\n\r\n" in asked or not _HTTP.match(line))


def _said(asked: bytes, ai_id: str, error: Unavailable) -> bytes:
    line = asked.split(b"\n", 1)[0]
    if line.lstrip().startswith(b"{"):
        try:
            request_id = msgspec.json.decode(line, type=_Head).request_id
        except msgspec.MsgspecError:
            request_id = None
        return encode(error_reply(error, request_id, ai_id))
    if _HTTP.match(line):
        # Whoever follows events comes again when it is hung up on; at any answer but a 200 EventSource gives up for good.
        return b"" if b"text/event-stream" in asked else _in_http(error)
    return f"error: {error.sentence}\n".encode()


def _in_http(error: Unavailable) -> bytes:
    """As the gateway says it: problem details (RFC 9457), and when to come again."""
    title = "Service Unavailable"
    problem = {"title": title, "status": 503, "detail": error.sentence, "error": error.sentence, "code": error.code}
    body = msgspec.json.encode(problem)
    head = [f"HTTP/1.1 503 {title}", "Content-Type: application/problem+json", f"Content-Length: {len(body)}"]
    head += [f"Retry-After: {math.ceil(error.retry_after)}"] if error.retry_after else []
    return "\r\n".join([*head, "Connection: close", "", ""]).encode() + body
