"""A stream on disk: its own events as they are sent, appended to one file, so that a killed gateway has forgotten nothing.

The file is itself a stream of server-sent events. Comments carry what is no event: who began it, which process writes, that it
is over. Whoever writes has the file locked for as long as it lives, which is how a successor tells a dead writer from one that
only finishes what it has. Nothing is synced: that would be for a machine that dies.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from protocol.codec import parse_json
from protocol.errors import ProtocolError

logger = logging.getLogger("chorus.gateway")

SUFFIX = ".sse"


class Head(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a stream before its first event. `kind` names its vocabulary, `owner` the key that began it.

    `retry_key` and `fingerprint` are those of a request that may be repeated without being paid for twice.
    """

    id: str
    kind: str
    created: float
    owner: str = ""
    retry_key: str = ""
    fingerprint: str = ""


class _Mark(Struct, frozen=True, omit_defaults=True):
    """A comment of ours: the head, the begin of a writer with the number of its first event, or the end."""

    head: Head | None = None
    epoch: str | None = None
    first: int = 0
    ended: float | None = None
    failed: bool = False


class Restored(Struct, frozen=True, kw_only=True):
    """What a file says. `epochs` has the number of the first event of each, oldest first; `ended` is a Unix time.

    `failed` is whether it ended in failure. `size` is where the last whole event ends: behind it is what a kill cut off.
    """

    head: Head
    epochs: dict[str, int]
    frames: list[bytes]
    ended: float | None
    failed: bool
    size: int


_decode = msgspec.json.Decoder(_Mark).decode
_MARK = b": "
_END = b"\n\n"


class Record:
    """The file of one stream, by its one writer. A disk that fails is logged, and the stream goes on without."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path = path
        self.is_whole = descriptor is not None  # everything that was to be written is there
        self._descriptor = descriptor

    @classmethod
    def create(cls, folder: Path, head: Head, epoch: str) -> Record:
        """A new file, locked. Where the disk does not give one, nothing is kept."""
        path = folder / f"{head.id}{SUFFIX}"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            record = cls(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600))
        except OSError as error:
            logger.error("%s is not kept on disk: %s", path, error.strerror)
            return cls(path, None)
        record._lock()
        record._write(_mark(_Mark(head=head)) + _mark(_Mark(epoch=epoch)))
        return record

    @classmethod
    def take_over(cls, path: Path) -> Record | None:
        """The file of a writer that is gone; None while it lives, or where the file cannot be opened."""
        try:
            record = cls(path, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
        except OSError:
            return None
        if record._lock():
            return record
        record.close()
        return None

    def begin(self, epoch: str, restored: Restored) -> None:
        """Goes on behind the last whole event."""
        if self._descriptor is not None:
            try:
                os.ftruncate(self._descriptor, restored.size)
            except OSError as error:
                self._fail(error)
        self._write(_mark(_Mark(epoch=epoch, first=len(restored.frames))))

    def write(self, frames: list[bytes]) -> None:
        self._write(b"".join(frames))

    def end(self, at: float, *, failed: bool) -> None:
        """Writes that nothing follows, and lets the file go."""
        self._write(_mark(_Mark(ended=at, failed=failed)))
        self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self) -> bool:
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _write(self, data: bytes) -> None:
        if self._descriptor is None or not self.is_whole:
            return
        try:
            if os.write(self._descriptor, data) < len(data):
                raise OSError(0, "there was no room for a whole event")
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.is_whole = False
        logger.error("%s is not kept on disk any further: %s", self.path, error.strerror)


def load(path: Path) -> Restored | None:
    """Reads a stream's file, which may be written at this moment; None for one that is not there or is none of ours."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    parts, whole = data.split(_END), data.rfind(_END)
    head: Head | None = None
    epochs: dict[str, int] = {}
    frames: list[bytes] = []
    ended, failed = None, False
    for part in parts[:-1]:
        if not part.startswith(_MARK):
            frames.append(part + _END)
            continue
        try:
            mark = parse_json(_decode, part[len(_MARK) :])
        except ProtocolError:
            return None
        head = mark.head or head
        if mark.ended is not None:
            ended, failed = mark.ended, mark.failed
        if mark.epoch:
            epochs[mark.epoch] = mark.first
    if head is None or not epochs:
        return None
    return Restored(head=head, epochs=epochs, frames=frames, ended=ended, failed=failed, size=whole + len(_END))


def remove_expired(folder: Path, after: float) -> None:
    """Removes what nobody has written to for so many seconds, unless its writer lives."""
    now = time.time()
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            is_old = now - path.stat().st_mtime > after
        except OSError:
            continue
        if is_old and (record := Record.take_over(path)) is not None:
            path.unlink(missing_ok=True)
            record.close()


def _mark(mark: _Mark) -> bytes:
    return _MARK + msgspec.json.encode(mark) + _END
