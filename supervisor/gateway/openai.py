"""OpenAI's protocol, for the clients that exist: every specialist is a model; so are `team`, which is everybody who is ready
at once, and `auto`, which is whom the rules choose.
"""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from protocol import names
from protocol.errors import BadRequest, NotFound
from protocol.messages import Chat, Embed, EmbedResponse
from supervisor.gateway.attempts import attempted
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
from supervisor.team.chat import TeamQuestion

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
    body = call.body
    name, _, model = body.model.partition("/")
    tell = _answering(call.house, name, question_of(body, model or None))

    async def work(stream: Stream) -> None:
        await tell(_telling(stream, body))

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
    match names.canonical(name):
        case "team":
            raise BadRequest("model: a team makes no vectors; name one specialist, or auto")
        case "auto":
            choice = await call.house.router.choose("")
            member = call.house.team.member(choice.chosen[0])
        case _:
            member = call.house.team.member(_found(call.house, name))
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


# -- whom is asked ------------------------------------------------------------------------------------------------------------


def _answering(house: House, spelling: str, question: Chat) -> Callable[[Telling], Awaitable[None]]:
    """How a model answers. Raises UnknownModel, and Unavailable where it is known that nobody does."""
    match names.canonical(spelling):
        case "team":
            members = members_of(house.team, None)
            return lambda telling: tell_all(members, _of_all(house, question), telling)
        case "auto":
            return lambda telling: _by_the_rules(house, question, telling)
        case _:
            member = house.team.member(_found(house, spelling))
            return lambda telling: tell_one(member, question, telling)


def _of_all(house: House, question: Chat) -> TeamQuestion:
    return team_question(question, house.router.rules, otherwise=TEAM_SILENCE)


async def _by_the_rules(house: House, question: Chat, telling: Telling) -> None:
    choice = await house.router.choose(question.text)
    if choice.strategy == "all":
        members = [house.team.member(name) for name in choice.chosen]
        await tell_all(members, _of_all(house, question), telling)
    else:
        await attempted(house, choice, lambda member, _, hear: tell_one(member, question, telling, hear))


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


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
