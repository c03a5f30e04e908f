"""What the gateway can do, one definition each: the route, what its request must look like, and what answers it.

The same definition has requests read and validated, and makes `openapi.json`. So what is described is what is checked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import msgspec
from aiohttp import web
from msgspec import Struct

from protocol.codec import explain, parse_json
from protocol.errors import BadRequest
from supervisor.gateway.bodies import UNKNOWN_BODY
from supervisor.gateway.follow import Following
from supervisor.gateway.frames import json_line
from supervisor.gateway.stream import Stream
from supervisor.gateway.streams import Work
from supervisor.gateway.vocabulary import Event

if TYPE_CHECKING:
    from supervisor.gateway.house import House

RETRY_KEY = 255  # characters
RESUME_GRACE = 10.0  # seconds that an answer goes on without its reader who can come back: EventSource does after three

REQUIRED = {"required": True}  # `extra` of a parameter that is to be given, except where a stream is resumed

Method = Literal["GET", "POST", "PUT", "DELETE"]
Scope = Literal["open", "chat", "admin"]  # what a key must be good for, where keys are needed; open needs none
Kind = Literal["json", "events", "text", "page", "style", "script"]
B = TypeVar("B")
OWNER = web.RequestKey("owner", str)  # the id of the key that a request came with


class Call(Generic[B]):
    """One request, read and validated. `body` is what the operation's `body` says, `query` what its `query` says.

    `asked` is the body as it came. `owner` is the caller's key, "" where none is needed.
    """

    def __init__(self, request: web.Request, house: House, body: B, query: Any, asked: bytes) -> None:
        self.request = request
        self.house = house
        self.body = body
        self.query = query
        self.asked = asked

    @property
    def owner(self) -> str:
        owner: str = self.request.get(OWNER, "")
        return owner

    def part(self, name: str = "id") -> str:
        """A part of the path."""
        return self.request.match_info[name]

    @property
    def grace(self) -> float:
        """How long an answer goes on when this caller leaves: only where it said that it would be back."""
        is_back = getattr(self.body, "resume", False) or self.retry_key
        return RESUME_GRACE if is_back else 0.0

    @property
    def retry_key(self) -> str:
        """What names a request that may be repeated without being done twice. Raises BadRequest."""
        key = self.request.headers.get("Idempotency-Key", "")
        if len(key) > RETRY_KEY or not key.isprintable():
            raise BadRequest(f"Idempotency-Key: expected at most {RETRY_KEY} printable characters")
        return key

    async def begun(self, kind: str, work: Work, *, is_kept: bool = True, is_endless: bool = False) -> Stream:
        """The stream of this request's work: begun now, or before by the same request with the same retry key."""
        streams, key = self.house.streams, self.retry_key
        asked = self.request.path.encode() + b"\n" + self.asked
        earlier = await streams.begun_before(self.owner, key, asked)
        if earlier is not None:
            return earlier
        return streams.begin(
            kind,
            work,
            owner=self.owner,
            retry_key=key,
            asked=asked,
            is_kept=is_kept or bool(key),
            is_endless=is_endless,
        )

    async def outcome(self, kind: str, work: Work) -> list[Event]:
        """The last events of this request's work, once it is over. A caller who leaves ends it, or gives it its grace."""
        stream = await self.begun(kind, work, is_kept=False)
        reader = stream.reader(grace=self.grace)
        try:
            return await self.house.streams.outcome(stream, reader)
        finally:
            reader.close()


Answer = Struct | list[Any] | dict[str, Any] | web.StreamResponse | Following


class Operation(Struct, frozen=True, kw_only=True):
    """One route.

    `answer` is the type of a 200's body; `failures` are the statuses that it may fail with besides those of every route.
    `answers` says whether that body is JSON, server-sent events or text, and `also` what else it may be; `events` has
    by the name of each event what its data may be: types, and texts that stand for themselves. `trouble` is the form of an
    error where it is another one than a problem. With `is_checked_by_run` the body is only parsed, and `run` itself says
    all that is wrong with it. `takes_retry_key` and `has_stream_id` are about headers. `is_hidden` keeps an alias out of the
    description.
    """

    method: Method
    path: str
    run: Callable[[Call[Any]], Awaitable[Answer]]
    tag: str
    summary: str
    body: Any = None
    query: type[Struct] | None = None
    answer: Any = None
    answers: Kind = "json"
    also: tuple[Kind, ...] = ()
    events: Mapping[str, tuple[Any, ...]] = MappingProxyType({})
    trouble: Any = None
    failures: tuple[int, ...] = ()
    scope: Scope = "chat"
    is_checked_by_run: bool = False
    takes_retry_key: bool = False
    has_stream_id: bool = False
    is_hidden: bool = False

    @property
    def name(self) -> str:
        """What it is called in the description."""
        return f"{self.run.__module__.rpartition('.')[2]}_{self.run.__name__}"

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Everything that a 200's body may be."""
        return (self.answers, *self.also)


def bound(operation: Operation, house: House) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The operation as a route of aiohttp's."""
    shape = Any if operation.is_checked_by_run else operation.body
    read_body = decoder(shape) if operation.body is not None else None
    most = UNKNOWN_BODY if operation.scope == "open" else None

    async def told(request: web.Request) -> Answer:
        query = read_query(request, operation.query) if operation.query is not None else None
        # Whatever the content type says: curl -d sends a form's.
        asked = await house.limits.bodies.read(request, most) if read_body is not None else b""
        body = parse_json(read_body, asked) if read_body is not None else None
        return await operation.run(Call(request, house, body, query, asked))

    async def answer(request: web.Request) -> web.StreamResponse:
        answered = await told(request)
        if isinstance(answered, Following):
            return await answered.answer(request)
        return answered if isinstance(answered, web.StreamResponse) else as_json(answered)

    return answer


def decoder(shape: Any) -> Callable[[bytes], Any]:
    """Reads JSON of this type. 5.0 is an integer to JSON Schema, so whoever goes by the description may say it."""
    exact = msgspec.json.Decoder(shape).decode

    def read(body: bytes) -> Any:
        try:
            return exact(body)
        except msgspec.ValidationError as error:
            if "got `float`" not in str(error):
                raise
            return msgspec.convert(_whole_numbers(body), shape)

    return read


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


_whole_numbers = msgspec.json.Decoder(float_hook=_number).decode


def read_query(request: web.Request, shape: type[Struct]) -> Any:
    """The query string as a value. Raises BadRequest with the parameter's name."""
    said: dict[str, Any] = {}
    for name, value in request.query.items():
        if name in said:
            raise BadRequest(f"{name}: given twice in the query")
        said[name] = value
    try:
        query = msgspec.convert(said, shape, strict=False)
    except msgspec.ValidationError as error:
        raise BadRequest(explain(error)) from None
    for name in said:
        if getattr(query, name, name) is None:  # "null", as msgspec reads it where no text is expected
            raise BadRequest(f"{name}: give a value, or leave it out")
    return query


def as_json(value: Any, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(status=status, body=json_line(value), content_type="application/json", charset="utf-8")
