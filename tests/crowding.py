"""Many readers of the gateway's streams at once, with our own client, and what each of them has read."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import anyio
import anyio.abc

from protocol.errors import ProtocolError
from protocol.events import Event
from supervisor.sse import EventClient, Lost, Patience

PATIENT = Patience(tries=20, within=60.0, first=0.1, longest=2.0)


class Follower:
    """One reader of one answer: everything it was told, and whether that fits together."""

    def __init__(self, url: str, path: str, body: dict[str, Any]) -> None:
        self.events: list[Event] = []
        self.losses: list[Lost] = []
        self.raised: ProtocolError | None = None
        self.over = anyio.Event()
        self._more = anyio.Event()  # a new one after each event
        self._client = EventClient(url, patience=PATIENT, tell=self.losses.append)
        self._path = path
        self._body = body

    async def run(self) -> None:
        try:
            async with aclosing(self._client.post(self._path, self._body)) as events:
                async for event in events:
                    self.events.append(event)
                    self._more.set()
                    self._more = anyio.Event()
        except ProtocolError as error:
            self.raised = error
        finally:
            self.over.set()
            self._more.set()

    async def has(self, count: int) -> None:
        """Waits for so many events, or for the end."""
        while len(self.events) < count and not self.over.is_set():
            await self._more.wait()

    @property
    def tokens(self) -> list[dict[str, Any]]:
        return [json.loads(event.data) for event in self.events if event.name == "token"]

    @property
    def text(self) -> str:
        return "".join(token["content"] for token in self.tokens)

    @property
    def end(self) -> dict[str, Any]:
        """The event before `done`: `complete` or `error`."""
        told: dict[str, Any] = json.loads(self.events[-2].data)
        return told

    def check(self, *, disk_was_full: bool = False) -> None:
        """Nothing was lost, nothing came twice, and the end is one. A full disk may know less than was read."""
        assert self.raised is None, self.raised
        names = [event.name for event in self.events if event.name not in ("status", "thinking")]
        assert names[-1] == "done", names[-3:]
        assert names[-2] in ("complete", "error"), names[-3:]
        assert set(names[:-2]) <= {"token"}, names
        indices = [token["metadata"]["chunk_index"] for token in self.tokens]
        assert indices == list(range(len(indices))), indices
        ids = [event.id for event in self.events]
        assert len(set(ids)) == len(ids), ids
        if names[-2] == "complete":
            assert self.end["content"] == self.text
        elif disk_was_full:
            assert self.text.startswith(self.end["partial"])
        else:
            assert self.end["partial"] == self.text
