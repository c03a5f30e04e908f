"""Keys for the gateway: made and revoked by the command line, known to the gateway by a hash alone.

The text of a key is `chorus_<id>_<secret>`. Its id is no secret: lists and logs show it. The file is replaced in one step
and looked at again for each key that comes, so that what was made counts at once, and what was revoked does not.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from protocol.errors import Unavailable

logger = logging.getLogger("chorus.gateway")

FILE = "keys.json"  # in the data folder
TEXT = re.compile(r"chorus_([0-9a-f]{8})_([0-9a-f]{64})")
PREFIX = "chorus_"
LOOKS_SECRET = re.compile(r"chorus_([0-9a-f]{8})_[0-9a-f]+")

KeyScope = Literal["chat", "admin"]


class Key(Struct, frozen=True, kw_only=True):
    """A key as it is kept. `digest` is the SHA-256 of its text, in hexadecimal. Times are Unix times.

    A secret of 256 random bits is found by no number of guesses, so it needs no hash that is slow: that is for passwords,
    which people choose.
    """

    id: str
    digest: str
    scope: KeyScope
    created: float
    name: str = ""
    expires: float | None = None

    def is_over(self, now: float) -> bool:
        return self.expires is not None and now >= self.expires


class _Kept(Struct, frozen=True):
    version: int
    keys: list[Key]


_decode = msgspec.json.Decoder(_Kept).decode


def make(scope: KeyScope, name: str = "", expires: float | None = None) -> tuple[Key, str]:
    """A new key, and its text, which is kept nowhere."""
    key_id, secret = secrets.token_hex(4), secrets.token_hex(32)
    text = f"chorus_{key_id}_{secret}"
    return Key(id=key_id, digest=_digest(text), scope=scope, created=time.time(), name=name, expires=expires), text


def read(path: Path) -> list[Key]:
    """The keys of a file, none where there is no file. Raises OSError, and ValueError for a file that is no such thing."""
    try:
        return _decode(path.read_bytes()).keys
    except FileNotFoundError:
        return []


def add(path: Path, key: Key) -> None:
    """Puts a key into the file. Raises as `read` does."""
    with _locked(path.parent):
        _write(path, [*read(path), key])


def remove(path: Path, key_id: str) -> Key | None:
    """Takes a key out of the file; None where there is none of this id. Raises as `read` does."""
    with _locked(path.parent):
        keys = read(path)
        found = next((one for one in keys if one.id == key_id), None)
        if found is not None:
            _write(path, [one for one in keys if one is not found])
        return found


class Keys:
    """The keys as the gateway knows them. Reads the file, and never writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None  # the file that was read: its inode, time and size
        self._keys: dict[str, Key] = {}
        self._broken: str | None = None

    @property
    def exist(self) -> bool:
        """Whether there is any. A file that cannot be read is taken for one with keys: it must open nothing."""
        self._look()
        return bool(self._keys) or self._broken is not None

    def find(self, text: str) -> Key | None:
        """The key of this text, unless it has expired. Raises Unavailable where the file cannot be read."""
        self._look()
        if self._broken is not None:
            raise Unavailable(self._broken)
        parts = TEXT.fullmatch(text)
        key = self._keys.get(parts[1]) if parts else None
        if key is None or not hmac.compare_digest(key.digest, _digest(text)):
            return None
        return None if key.is_over(time.time()) else key

    def of_id(self, key_id: str) -> Key | None:
        """The key of this id, unless it has expired."""
        self._look()
        key = self._keys.get(key_id)
        return None if key is None or key.is_over(time.time()) else key

    def _look(self) -> None:
        try:
            status = os.stat(self._path)
            seen: tuple[int, ...] = (status.st_ino, status.st_mtime_ns, status.st_size)
        except FileNotFoundError:
            seen = ()
        except OSError as error:
            seen = (-1, error.errno or 0)
        if seen == self._seen:
            return
        self._seen, self._broken = seen, None
        try:
            self._keys = {one.id: one for one in read(self._path)}
        except (OSError, ValueError) as error:
            self._keys, self._broken = {}, f"{self._path} cannot be read: {error}"
            logger.error("no key is accepted: %s", self._broken)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else changes what is in the folder meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, keys: list[Key]) -> None:
    replace(path, msgspec.json.format(msgspec.json.encode(_Kept(1, keys))) + b"\n")


def replace(path: Path, content: bytes) -> None:
    """Replaces a file that only we may read, in one step and for good. Raises OSError."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
