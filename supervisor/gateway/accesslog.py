"""One line for each request in the gateway's log: what was asked, by which key, and how it went. No bodies and no secrets.

Whatever comes from outside is written so that it can do nothing to a log or to a terminal, and cannot grow it by much.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from supervisor.gateway.keys import LOOKS_SECRET
from supervisor.gateway.operation import OWNER

logger = logging.getLogger("chorus.gateway")

POLLED = frozenset({"/health", "/ready", "/metrics"})  # every few seconds, and of no interest while all is well
LONGEST = 200  # characters of a path
LEFT = 499  # what nginx writes for a caller who did not wait for the answer
_HARMFUL = re.compile(r"[^!-~]")


@web.middleware
async def logged(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Writes the line, when the response is over or the caller has left."""
    began = time.perf_counter()
    try:
        response = await handler(request)
    except (asyncio.CancelledError, ConnectionError):
        _tell(request, LEFT, began, 0)
        raise
    if response.status != 200 or request.path not in POLLED:
        _tell(request, response.status, began, _size(response))
    return response


def shown(request: web.Request) -> str:
    """The path of a request as it may be written down."""
    path = _HARMFUL.sub(lambda found: f"\\x{ord(found[0]):02x}", request.rel_url.raw_path)
    path = LOOKS_SECRET.sub(r"chorus_\1_…", path)
    if len(path) > LONGEST:
        path = f"{path[:LONGEST]}…"
    return f"{path}?…" if request.query_string else path


def plainly(record: logging.LogRecord) -> bool:
    """A filter for the library's own log: what others do is no failure of ours.

    What is no HTTP is a line. A caller who has left is none.
    """
    error = record.exc_info[1] if record.exc_info else None
    # UnicodeEncodeError: the library answers an Expect that is no text before any of us, and stumbles.
    if isinstance(error, HttpProcessingError | UnicodeEncodeError):
        said = str(getattr(error, "message", "")) or "it is no HTTP"
        what = said.splitlines()[0].partition(":")[0]
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args, record.exc_info = "refused a request that cannot be read: %s", (what,), None
    return not isinstance(error, ConnectionError)


def library_log() -> logging.Logger:
    """Where the library writes."""
    log = logging.getLogger("chorus.gateway.http")
    log.addFilter(plainly)  # once, however often it is said
    return log


def _tell(request: web.Request, status: int, began: float, size: int) -> None:
    took = (time.perf_counter() - began) * 1000
    owner = request.get(OWNER)
    logger.info(
        "%s %s %d %.0f ms %d bytes%s",
        request.method,
        shown(request),
        status,
        took,
        size,
        f" key {owner}" if owner else "",
    )


def _size(response: web.StreamResponse) -> int:
    """The bytes of its body, which of a plain response are sent after this."""
    if isinstance(response, web.Response) and isinstance(response.body, bytes):
        return len(response.body)
    return response.body_length if response.prepared else 0
