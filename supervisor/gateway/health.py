"""Whether this process serves, and whether there is somebody who answers."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from msgspec import Struct

from protocol import names
from protocol.errors import Unavailable
from protocol.messages import BackendState, HealthResponse
from supervisor.fleet.processes import resident
from supervisor.gateway.operation import Answer, Call

if TYPE_CHECKING:
    from supervisor.gateway.house import House

AGAIN_AFTER = 2.0  # seconds until it may be otherwise


class TeamCounts(Struct, frozen=True):
    """How many there are, and how many of them answer. `told` is whether a supervisor says so at this moment."""

    total: int
    answering: int
    told: bool


class GatewayHealth(HealthResponse, frozen=True, tag="health_response", kw_only=True):
    """What a specialist says of itself over the wire, said of the gateway, and of the team."""

    team: TeamCounts


class Ready(Struct, frozen=True):
    """Somebody answers, and a supervisor watches over them."""

    status: str
    answering: list[str]


async def health(call: Call[None]) -> Answer:
    """How this process is: 200 as long as it serves at all."""
    return how_it_is(call.house)


async def ready(call: Call[None]) -> Answer:
    """Whether questions are answered: at least one specialist is ready, and a supervisor tells of it."""
    house = call.house
    if not house.team.is_told:
        raise Unavailable("no supervisor tells of the team: chorus up", retry_after=AGAIN_AFTER)
    if not house.team.answering:
        raise Unavailable("no specialist is ready: chorus status says why", retry_after=AGAIN_AFTER)
    return Ready("ready", [names.specialist_id(one.name) for one in house.team.answering])


def how_it_is(house: House) -> GatewayHealth:
    """What the gateway says of itself; its supervisor asks for it too."""
    team, obstacle = house.team, house.admission.obstacle
    return GatewayHealth(
        ai_id=house.config.ai_id,
        status="draining" if house.is_draining else "healthy" if obstacle is None else "degraded",
        component=house.config.name,
        pid=os.getpid(),
        instance=house.instance,
        clients=house.beat.readers,
        in_flight=house.requests.under_way - 1,  # without this very request
        backend=BackendState("gateway", None, "ready" if obstacle is None else "down", obstacle),
        uptime=round(time.monotonic() - house.born, 3),
        rss_bytes=resident(os.getpid()),
        team=TeamCounts(len(team.specialists), len(team.answering), team.is_told),
    )
