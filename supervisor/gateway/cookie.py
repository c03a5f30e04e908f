"""What a browser is given in place of a key: EventSource and WebSocket send no headers of a page's choice, but cookies.

A page sends its key once, to /api/session, and keeps none. The cookie says who it is and until when, signed with a secret of
this installation, so that it outlives a restart of the gateway. The key's digest is signed too: with a key that is revoked its
cookies end. Browsers send a cookie to every port of a host: it counts only together with a sign that our own page asks.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import time
from functools import cached_property
from pathlib import Path

from supervisor.gateway.keys import Key, Keys

logger = logging.getLogger("chorus.gateway")

FILE = "cookies.secret"  # in the state folder; not among the keys, where it would make a hash as good as a key
LIVES = 12 * 3600  # seconds


class Cookies:
    """The cookies of this installation."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def name(self, *, secure: bool) -> str:
        """Of this installation alone: another one's on the same machine has another name.

        By TLS it begins so that browsers keep others from setting it (RFC 6265bis, 4.1.3.2).
        """
        return f"{'__Host-' if secure else ''}chorus_{self._mark}"

    def value(self, key: Key) -> tuple[str, float]:
        """A cookie for whoever has this key, and the Unix time when it ends."""
        ends = time.time() + LIVES
        if key.expires is not None:
            ends = min(ends, key.expires)
        return f"{key.id}.{int(ends)}.{self._signed(key, int(ends))}", int(ends)

    def key_of(self, value: str, keys: Keys) -> Key | None:
        """The key that a cookie stands for; None where it has ended, or is none of ours."""
        key_id, _, rest = value.partition(".")
        ends, _, signed = rest.partition(".")
        if len(ends) > 12 or not ends.isascii() or not ends.isdecimal() or int(ends) <= time.time():
            return None
        key = keys.of_id(key_id)
        if key is None or not hmac.compare_digest(signed.encode(), self._signed(key, int(ends)).encode()):
            return None
        return key

    def _signed(self, key: Key, ends: int) -> str:
        return hmac.new(self._secret, f"{key.id}.{ends}.{key.digest}".encode(), "sha256").hexdigest()

    @cached_property
    def _mark(self) -> str:
        return hashlib.sha256(b"name" + self._secret).hexdigest()[:12]

    @cached_property
    def _secret(self) -> bytes:
        fresh = secrets.token_bytes(32)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Linked into place whole: of two gateways that start at once, one's secret becomes both's.
            own = self._path.with_name(f"{self._path.name}-{os.getpid()}-{secrets.token_hex(4)}")
            own.touch(0o600, exist_ok=False)
            try:
                own.write_bytes(fresh)
                os.link(own, self._path)
            except FileExistsError:
                pass
            finally:
                own.unlink()
            found = self._path.read_bytes()
            if len(found) == len(fresh):
                return found
            logger.warning("%s is no secret of ours: cookies end with this process", self._path)
        except OSError as error:
            logger.warning("%s cannot be kept: cookies end with this process: %s", self._path, error.strerror)
        return fresh
