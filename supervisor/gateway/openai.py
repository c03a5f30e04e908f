"""OpenAI's protocol, for the clients that exist: every specialist is a model; so are `team`, which is everybody who is ready
at once, and `auto`, which is whom the rules choose.
"""

from __future__ import annotations

import base64
import struct
import time
from typing import TYPE_CHECKING

from aiohttp import web

from protocol import names
from protocol.errors import BadRequest, NotFound
from protocol.messages import Embed, EmbedResponse
from supervisor.gateway.members import members_of, replied
from supervisor.gateway.openai_telling import KIND, Live, Telling, Whole, tell_all, tell_one
from supervisor.gateway.openai_wire import (
    CompletionBody,
    Embedding,
    EmbeddingBody,
    Embeddings,
    Model,
    Models,
    question_of,
    raised,
)
from supervisor.gateway.operation import Answer, Call
from supervisor.gateway.resume import serve
from supervisor.gateway.stream import Stream
from supervisor.gateway.teamchat import team_question
from supervisor.team.chat import Member

if TYPE_CHECKING:
    from supervisor.gateway.house import House

TEAM, AUTO = "team", "auto"
TEAM_SILENCE = (
    60.0  # seconds: these clients send whole conversations, which a local model reads for long, and wait for minutes
)


class UnknownModel(NotFound):
    """Nobody here is called so."""

    code = "model_not_found"


# -- routes -------------------------------------------------------------------------------------------------------------------


async def list_models(call: Call[None]) -> Answer:
    """Who can be asked, as models."""
    return Models([_model(call.house, name) for name in _model_names(call.house)])


async def show_model(call: Call[None]) -> Answer:
    """One of them, in any spelling."""
    name = names.canonical(call.part())
    return _model(call.house, name if name in (TEAM, AUTO) else _found(call.house, call.part()))


async def complete(call: Call[CompletionBody]) -> Answer:
    """Goes on with a conversation: the whole answer, or its pieces as they come."""
    body, house = call.body, call.house
    name, _, model = body.model.partition("/")
    question = question_of(body, model or None)
    members = await _asked(house, name, question.text)
    is_one = len(members) == 1 and names.canonical(name) != TEAM

    async def work(stream: Stream) -> None:
        telling = _telling(stream, body)
        if is_one:
            await tell_one(members[0], question, telling)
        else:
            await tell_all(members, team_question(question, TEAM_SILENCE), telling)

    if body.stream:
        return await serve(call, await call.begun(KIND, work), grace=call.grace)
    [*_, (_, data)] = await call.outcome(KIND, work)
    if (error := raised(data)) is not None:
        raise error
    return web.Response(body=data, content_type="application/json", charset="utf-8")


async def embed(call: Call[EmbeddingBody]) -> Answer:
    """Texts into vectors, by the model server of a specialist."""
    body = call.body
    name, _, model = body.model.partition("/")
    if not body.input or not all(body.input):
        raise BadRequest("input: empty; send one text, or a list of them")
    if body.dimensions is not None:
        raise BadRequest("dimensions: vectors are as long as the model makes them; leave it out")
    if names.canonical(name) == TEAM:
        raise BadRequest("model: a team makes no vectors; name one specialist, or auto")
    [member, *_] = await _asked(call.house, name, "")
    reply = await replied(member, Embed(input=body.input, model=model or None), EmbedResponse)
    as_base64 = body.encoding_format == "base64"
    vectors = enumerate(reply.embeddings)
    return Embeddings([Embedding(at, _packed(one) if as_base64 else one) for at, one in vectors], reply.model)


def _telling(stream: Stream, body: CompletionBody) -> Telling:
    if not body.stream:
        return Whole(stream, body.model)
    return Live(
        stream, body.model, with_usage=body.stream_options is not None and bool(body.stream_options.include_usage)
    )


# -- models -------------------------------------------------------------------------------------------------------------------


def _model_names(house: House) -> list[str]:
    return [*(one.name for one in house.team.specialists), TEAM, AUTO]


def _model(house: House, name: str) -> Model:
    return Model(name, created=int(time.time() - time.monotonic() + house.born))


def _found(house: House, spelling: str) -> str:
    try:
        return house.team.find(spelling).name
    except NotFound as error:
        raise UnknownModel(f"{error.sentence}; GET /v1/models lists all models") from None


async def _asked(house: House, spelling: str, message: str) -> list[Member]:
    """Who answers as a model: everybody for `team`. Raises UnknownModel, and Unavailable where nobody can."""
    match names.canonical(spelling):
        case "team":
            return members_of(house.team, None)
        case "auto":
            return await house.router.members(message)
        case _:
            return [house.team.member(_found(house, spelling))]


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
