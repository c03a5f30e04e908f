"""When each key was last used, to the minute: written by the gateway now and then, read by `chorus key list`."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from supervisor.gateway.keys import replace

logger = logging.getLogger("chorus.gateway")

FILE = "keys-used.json"  # in the state folder
WRITE_EVERY = 60.0  # seconds: a killed gateway forgets no more than the last minute
MINUTE = 60

_decode = msgspec.json.Decoder(dict[str, float]).decode


def read(path: Path) -> dict[str, float]:
    """The Unix times, by the ids of the keys; nothing where nothing is known."""
    try:
        return _decode(path.read_bytes())
    except (OSError, ValueError):
        return {}


class Uses:
    """What this gateway has seen. Another one may write to the same file while it goes down: the later time stays."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[str, float] = {}

    def note(self, key_id: str) -> None:
        self._seen[key_id] = time.time() // MINUTE * MINUTE

    async def run(self) -> None:
        """Writes now and then, until cancelled; then once more."""
        try:
            while True:
                await anyio.sleep(WRITE_EVERY)
                await anyio.to_thread.run_sync(self.write)
        finally:
            self.write()

    def write(self) -> None:
        """Writes what is new. A folder that cannot be written costs the times, nothing else."""
        if not self._seen:
            return
        seen, self._seen = self._seen, {}
        kept = read(self._path)
        kept |= {key_id: max(at, kept.get(key_id, 0.0)) for key_id, at in seen.items()}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace(self._path, msgspec.json.encode(kept))
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._path, error.strerror)
