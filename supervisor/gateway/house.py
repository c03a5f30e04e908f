"""What the gateway consists of besides its routes."""

from __future__ import annotations

import secrets
import time

import anyio
import anyio.abc

from protocol.settings import GatewayConfig


class House:
    """Everything that routes need. `run` lives as long as the gateway does."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.instance = secrets.token_hex(8)
        self.born = time.monotonic()
        self.in_flight = 0
        self.is_draining = False
        self._ended = anyio.Event()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serves what the routes need until cancelled."""
        task_status.started()
        await anyio.sleep_forever()

    def begun(self) -> None:
        """A request is under way."""
        self.in_flight += 1

    def ended(self) -> None:
        """And is not any more."""
        self.in_flight -= 1
        self._ended.set()
        self._ended = anyio.Event()

    async def drain(self, grace: float) -> None:
        """Refuses what is new, and returns when nothing is under way any more, or after `grace` seconds."""
        self.is_draining = True
        with anyio.move_on_after(grace):
            while self.in_flight:
                await self._ended.wait()
