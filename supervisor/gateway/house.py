"""What the gateway consists of besides its routes, and the order in which it goes down.

the team, as the supervisor tells of it
what becomes of the team, as a stream       ended first: whoever follows comes back, to our successor
streams, with the work behind them          drained then: everybody who reads is given a proper end
the beat of the readers' connections
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import anyio
import anyio.abc

from protocol.settings import GatewayConfig
from supervisor.gateway import chat, cookie, keys, logs, openai_telling, specialists, teamevents, uses
from supervisor.gateway.admission import Admission
from supervisor.gateway.connections import Connections
from supervisor.gateway.cookie import Cookies
from supervisor.gateway.follow import USUAL, Beat, Patience
from supervisor.gateway.guard import Guard
from supervisor.gateway.happenings import Happenings
from supervisor.gateway.keys import Keys
from supervisor.gateway.limits import Limits
from supervisor.gateway.metrics import Requests
from supervisor.gateway.routing import Router
from supervisor.gateway.streams import Interrupted, Streams
from supervisor.gateway.team import Team
from supervisor.gateway.uses import Uses
from supervisor.team.rulebook import Rulebook

VOCABULARIES = (chat.VOCABULARY, teamevents.VOCABULARY, openai_telling.VOCABULARY, logs.VOCABULARY)


class House:
    """Everything that routes need. `run` lives as long as the gateway does."""

    def __init__(self, config: GatewayConfig, patience: Patience = USUAL) -> None:
        self.config = config
        self.instance = secrets.token_hex(8)
        self.born = time.monotonic()
        self.born_at = time.time()
        self.team = Team(config)
        data, state = Path(config.data_dir), Path(config.state_dir)
        self.guard = Guard(config.settings, "https" if config.settings.tls_certificate else "http")
        self.keys = Keys(data / keys.FILE)
        self.cookies = Cookies(state / cookie.FILE)
        self.uses = Uses(state / uses.FILE)
        self.admission = Admission(config, self.keys, self.cookies, self.uses)
        self.limits = Limits(config.settings)
        self.connections = Connections(config.limits.connections)
        self.rulebook = Rulebook(state)
        self.router = Router(self.team, self.rulebook)
        self.happenings = Happenings(state, self._picture)
        self.team.hear(self.happenings.take)
        vocabularies = (*VOCABULARIES, self.happenings.vocabulary)
        self.streams = Streams(state / "streams", vocabularies, config.settings.streams)
        self.beat = Beat(patience)
        self.requests = Requests()
        self.is_draining = False

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serves what the routes need until cancelled."""
        self.happenings.begin()
        async with anyio.create_task_group() as group:
            await group.start(self.team.run)
            await group.start(self.streams.run)
            group.start_soon(self.beat.run)
            group.start_soon(self.uses.run)
            task_status.started()

    async def drain(self, grace: float) -> None:
        """Refuses what is new, and returns when nothing is under way any more; what is after `grace` seconds is ended."""
        self.is_draining = True
        self.happenings.end()
        await self.streams.drain(Interrupted("the gateway went down before the answer was whole: ask again"), grace)
        with anyio.move_on_after(grace):
            await self.requests.none_under_way()

    def _picture(self) -> specialists.Picture:
        return specialists.picture(self.team, is_told=self.team.is_told)
