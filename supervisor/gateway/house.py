"""What the gateway consists of besides its routes, and the order in which it goes down.

the team, as the supervisor tells of it
streams, with the work behind them          drained first: everybody who reads is given a proper end
the beat of the readers' connections
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import anyio
import anyio.abc

from protocol.settings import GatewayConfig
from supervisor.gateway import chat, cookie, keys, openai_telling, teamevents, uses
from supervisor.gateway.admission import Admission
from supervisor.gateway.cookie import Cookies
from supervisor.gateway.follow import Beat
from supervisor.gateway.guard import Guard
from supervisor.gateway.keys import Keys
from supervisor.gateway.limits import Limits
from supervisor.gateway.streams import Interrupted, Streams
from supervisor.gateway.team import Team
from supervisor.gateway.uses import Uses

VOCABULARIES = (chat.VOCABULARY, teamevents.VOCABULARY, openai_telling.VOCABULARY)


class House:
    """Everything that routes need. `run` lives as long as the gateway does."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.instance = secrets.token_hex(8)
        self.born = time.monotonic()
        self.team = Team(config)
        data, state = Path(config.data_dir), Path(config.state_dir)
        self.guard = Guard(config.settings, "https" if config.settings.tls_certificate else "http")
        self.keys = Keys(data / keys.FILE)
        self.cookies = Cookies(state / cookie.FILE)
        self.uses = Uses(state / uses.FILE)
        self.admission = Admission(config, self.keys, self.cookies, self.uses)
        self.limits = Limits(config.settings)
        self.streams = Streams(state / "streams", VOCABULARIES, config.settings.streams)
        self.beat = Beat()
        self.in_flight = 0
        self.is_draining = False
        self._ended = anyio.Event()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serves what the routes need until cancelled."""
        async with anyio.create_task_group() as group:
            await group.start(self.team.run)
            await group.start(self.streams.run)
            group.start_soon(self.beat.run)
            group.start_soon(self.uses.run)
            task_status.started()

    def begun(self) -> None:
        """A request is under way."""
        self.in_flight += 1

    def ended(self) -> None:
        """And is not any more."""
        self.in_flight -= 1
        self._ended.set()
        self._ended = anyio.Event()

    async def drain(self, grace: float) -> None:
        """Refuses what is new, and returns when nothing is under way any more; what is after `grace` seconds is ended."""
        self.is_draining = True
        await self.streams.drain(Interrupted("the gateway went down before the answer was whole: ask again"), grace)
        with anyio.move_on_after(grace):
            while self.in_flight:
                await self._ended.wait()
