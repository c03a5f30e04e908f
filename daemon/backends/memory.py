"""What is remembered of the model server between runs: that one was seen, and which model was chosen there.

One small file in the state folder, shared by all specialists. Several processes may write at once: each
replaces the whole file, and all of them choose alike.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import msgspec
from msgspec import Struct

log = logging.getLogger(__name__)

FILE_NAME = "backend.json"


class Remembered(Struct, frozen=True):
    """`model` is the default model chosen at `url`. `seen`: some model server answered once, here or elsewhere."""

    url: str = ""
    model: str | None = None
    seen: bool = False


_decode = msgspec.json.Decoder(Remembered).decode


class Memory:
    """The file. Reading and writing it are synchronous: a hundred bytes, written once in the life of a team."""

    def __init__(self, state_dir: str) -> None:
        self._path = Path(state_dir) / FILE_NAME

    def read(self) -> Remembered:
        """What was remembered; nothing where there is no file, or none that can be read."""
        try:
            return _decode(self._path.read_bytes())
        except FileNotFoundError:
            return Remembered()
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s): starting as if there were none", self._path, error)
            return Remembered()

    def model_at(self, url: str) -> str | None:
        """The default model chosen at this model server, if one was."""
        remembered = self.read()
        return remembered.model if remembered.url == url else None

    def write(self, remembered: Remembered) -> None:
        """Replaces the file in one step. A state folder that cannot be written costs the memory, nothing else."""
        if self.read() == remembered:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=FILE_NAME, dir=self._path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(msgspec.json.encode(remembered))
                os.replace(name, self._path)
            except OSError:
                os.unlink(name)
                raise
        except OSError as error:
            log.warning("%s cannot be written (%s): the model server will be found anew next time", self._path, error)
