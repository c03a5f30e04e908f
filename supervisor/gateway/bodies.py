"""Requests' bodies: read within bounds of their own, of size and of time, and all of them together within one."""

from __future__ import annotations

import anyio
from aiohttp import web

from supervisor.gateway.problem import Encoded, TooLarge, TooMany, TooSlow

BODY_WITHIN = 60.0  # seconds
UNKNOWN_BODY = 4096  # bytes of the body of somebody who may be anybody
ALL_BODIES = 67_108_864  # bytes of bodies that are being read at a time


class Bodies:
    """Reads requests' bodies, all of them together within bounds."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes of bodies that are being read at this moment."""
        return self._held

    async def read(self, request: web.Request, most: int | None = None) -> bytes:
        """The body, of at most so many bytes. Raises TooLarge, TooSlow, TooMany, and Encoded for one that is compressed.

        A compressed one would be small on the way and large here, which is of no use to anybody honest on loopback.
        """
        if "Content-Encoding" in request.headers:
            raise Encoded("the body is compressed: send it as it is, without Content-Encoding")
        most = min(most or self._most, self._most)
        if (request.content_length or 0) > most:
            raise _too_large(most)
        parts: list[bytes] = []
        size = 0
        try:
            with anyio.fail_after(BODY_WITHIN):
                async for part in request.content.iter_any():
                    size += len(part)
                    self._held += len(part)
                    if size > most:
                        raise _too_large(most)
                    if self._held > ALL_BODIES:
                        raise TooMany("too many large requests are being read: try again", retry_after=1.0)
                    parts.append(part)
        except TimeoutError:
            raise TooSlow(f"the body did not arrive within {BODY_WITHIN:g} s") from None
        finally:
            self._held -= size
        return b"".join(parts)


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"the body is larger than {most} bytes: send less, or raise gateway.max_body_bytes")
