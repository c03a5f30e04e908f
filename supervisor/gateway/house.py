"""What the gateway consists of, and the order in which it comes up and goes down.

the team as it is told by the supervisor      first up, so that the first request finds somebody
streams, with the work behind them            drained first: everybody who reads is given a proper end
the beat of the readers' connections
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import anyio
import anyio.abc

from protocol.errors import Draining
from protocol.settings import GatewayConfig
from supervisor.gateway import chat
from supervisor.gateway.follow import Beat
from supervisor.gateway.streams import Streams
from supervisor.gateway.team import Team

VOCABULARIES = (chat.VOCABULARY,)


class House:
    """Everything that routes need. `run` lives as long as the gateway does."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.instance = secrets.token_hex(8)
        self.born = time.monotonic()
        self.team = Team(config)
        self.streams = Streams(Path(config.state_dir) / "streams", VOCABULARIES, config.settings.streams)
        self.beat = Beat()
        self.in_flight = 0
        self.is_draining = False

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serves what the routes need until cancelled."""
        async with anyio.create_task_group() as group:
            await group.start(self.team.run)
            await group.start(self.streams.run)
            group.start_soon(self.beat.run)
            task_status.started()

    async def drain(self, grace: float) -> None:
        """Has everything under way end, within `grace` seconds by itself and after that with a word."""
        self.is_draining = True
        await self.streams.drain(Draining("the gateway is going down: ask again", retry_after=1.0), grace)
