"""The orchestration rules over HTTP. The supervisor alone checks and writes them; whoever reads, reads its file."""

from __future__ import annotations

from typing import Any

import msgspec

from protocol.control import Route
from protocol.errors import BadRequest
from supervisor.gateway.operation import Answer, Call
from supervisor.gateway.problem import Mistaken
from supervisor.team.routing import Orchestration


async def show(call: Call[None]) -> Answer:
    """The rules in force."""
    return call.house.rulebook.rules


async def replace(call: Call[Any]) -> Answer:
    """Puts rules in the place of those in force, for every process and at once; or says all that is wrong with them."""
    if not isinstance(call.body, dict):
        raise BadRequest("expected an object with routing_rules, timeout_settings and retry_policy")
    result = await call.house.team.command(Route(rules=call.body))
    if result.mistakes:
        raise Mistaken(result.mistakes)
    return msgspec.convert(result.rules, Orchestration)
