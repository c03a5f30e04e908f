"""The shell's client as its plan prints it, line for line in what it does: it must work unchanged.

It looks at lines: each that begins with `data: ` is a whole event to it, and `event: done` is the end. So `event:` has to come
before `data:`, and the data has to be one line of JSON that names its event itself. It looks at no status and knows no ids: a
refusal is an answer without events to it, and what it lost it does not ask for. Our own client (`supervisor/sse.py`) goes by
the standard, and does.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp


class SSEClient:
    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        self.url = url
        self.headers = headers or {}
        self.headers["Accept"] = "text/event-stream"

    async def stream(self, data: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.url, json=data, headers=self.headers) as response,
        ):
            async for line in response.content:
                if line:
                    decoded = line.decode("utf-8").strip()
                    if decoded.startswith("data: "):
                        try:
                            event_data = json.loads(decoded[6:])
                            yield event_data
                        except json.JSONDecodeError:
                            continue
                    elif decoded == "event: done":
                        break


async def receive(client: SSEClient, data: dict[str, Any]) -> AsyncIterator[str]:
    """What the plan's wrapper around it hands on: the tokens."""
    async for event in client.stream(data):
        if event.get("event") == "token":
            yield event.get("data", {}).get("token", "")


async def received(url: str, payload: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The reader in Python of the streaming guide."""
    async with aiohttp.ClientSession() as session, session.post(url, json=payload) as response:
        async for line in response.content:
            text = line.decode("utf-8").strip()
            if text.startswith("data:"):
                yield json.loads(text[5:])
