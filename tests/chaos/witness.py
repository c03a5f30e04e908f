"""Follows every change that a team's supervisor tells, and remembers them. A number that is missing is a breach.

One connection for each life of a supervisor; between two lives it tries again until somebody answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

LOOK_EVERY = 0.02  # seconds between two tries to reach a supervisor
LONGEST_LINE = 4_194_304  # a snapshot of two hundred


class Change(Struct, frozen=True):
    """A change of state as the supervisor told it, with the moment at which it was heard."""

    heard: float
    seq: int
    name: str
    from_: str
    to: str
    cause: str
    pid: int | None


class Witness:
    """What was told. `complain` hears of every breach of order."""

    def __init__(self, place: Path, complain: Callable[[str], None]) -> None:
        self.changes: list[Change] = []
        self.lives = 0
        self.life_began = 0.0
        self._place = place  # of the file that says where the control socket is
        self._complain = complain

    async def run(self) -> None:
        """Listens until cancelled."""
        while True:
            try:
                path = self._place.read_text().strip()
                reader, writer = await asyncio.open_unix_connection(path, limit=LONGEST_LINE)
            except OSError:
                await asyncio.sleep(LOOK_EVERY)
                continue
            try:
                await self._one_life(reader, writer)
            except OSError:
                pass  # that supervisor is gone
            finally:
                writer.transport.abort()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _one_life(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"type":"watch","request_id":1}\n')
        seq: int | None = None
        while line := await reader.readline():
            told: dict[str, Any] = json.loads(line)
            match told["type"]:
                case "snapshot":
                    seq = told["seq"]
                    self.lives += 1
                    self.life_began = time.monotonic()
                case "transition":
                    if seq is None or told["seq"] != seq + 1:
                        self._complain(f"events have a hole: {told['seq']} came after {seq}: {told}")
                    seq = told["seq"]
                    self.changes.append(_change(told))
                case "gap":
                    self._complain(f"events have a gap: {told}")
                    seq = None

    def since(self, moment: float, name: str) -> list[Change]:
        """What was heard of a specialist after a moment of the monotonic clock."""
        return [one for one in self.changes if one.heard >= moment and one.name == name]


def _change(told: dict[str, Any]) -> Change:
    return Change(time.monotonic(), told["seq"], told["name"], told["from"], told["to"], told["cause"], told.get("pid"))


async def ask_supervisor(place: Path, request: dict[str, Any], within: float = 10.0) -> dict[str, Any]:
    """Asks the control socket something that is answered by one result, and returns that. Raises OSError, TimeoutError."""
    async with asyncio.timeout(within):
        reader, writer = await asyncio.open_unix_connection(place.read_text().strip(), limit=LONGEST_LINE)
        try:
            writer.write(json.dumps({"request_id": 1, **request}).encode() + b"\n")
            while line := await reader.readline():
                told: dict[str, Any] = json.loads(line)
                if told["type"] in ("result", "error"):
                    return told
            raise ConnectionResetError("the supervisor hung up")
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
