"""Small questions to specialists from commands: one request, one reply."""

from __future__ import annotations

import anyio

from protocol.client import connect
from protocol.errors import ProtocolError, Refused
from protocol.messages import AnyReply, AnyRequest
from supervisor.cli.exits import Exit, Failure, failure_of
from supervisor.cli.whom import Colleagues, Place, colleagues
from supervisor.config import Loaded

REPLY_WITHIN = 10.0  # seconds; none of these waits for a model


async def call(loaded: Loaded, name: str, request: AnyRequest) -> AnyReply:
    """Asks one specialist by its canonical name; raises Failure."""
    everybody = await colleagues(loaded)
    [reply] = await call_at(everybody, everybody.place(name), request)
    return reply


async def call_at(everybody: Colleagues, place: Place, *requests: AnyRequest) -> list[AnyReply]:
    """Asks the one at this place, on one connection, one thing after the other; raises Failure."""
    replies = []
    try:
        async with connect(place.host, place.port) as connection:
            for request in requests:
                with anyio.fail_after(REPLY_WITHIN):
                    replies.append(await connection.call(request))
    except Refused:
        raise everybody.unreachable(place.name) from None
    except ProtocolError as error:
        raise failure_of(error) from None
    except TimeoutError:
        sentence = f"{place.name} has not answered in {REPLY_WITHIN:g} s"
        raise Failure(sentence, Exit.NOT_RUNNING, remedy="chorus status") from None
    return replies
