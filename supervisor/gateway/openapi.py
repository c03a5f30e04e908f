"""The description of every route, as OpenAPI 3.1: made from the definitions that read and validate requests.

Types become schemas as msgspec reads them; what only a route knows of its body (that one of two fields must be there) stands
beside the type, where the operation is defined.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from functools import cache
from typing import Any, get_args

import msgspec
from aiohttp import web
from msgspec import Meta

from protocol import __version__
from supervisor.gateway.operation import REQUIRED, RETRY_KEY, Answer, Call, Kind, Operation
from supervisor.gateway.problem import CONTENT_TYPE, TITLES, WAITING_HELPS, Problem

Json = dict[str, Any]

EVERYWHERE = (400, 401, 403, 404, 408, 413, 415, 421, 422, 429, 500)  # what any route may answer
REFERENCE = "#/components/schemas/{name}"
MEDIA: dict[Kind, str] = {
    "json": "application/json",
    "events": "text/event-stream",
    "text": "text/plain",
    "page": "text/html",
    "style": "text/css",
    "script": "text/javascript",
}
CURSOR: Json = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The id of the last event that the reader has: what follows it is sent.",
    "schema": {"type": "string"},
}
IDEMPOTENCY_KEY: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Names this request: sent again, it joins the first one instead of being done twice.",
    "schema": {"type": "string", "maxLength": RETRY_KEY, "pattern": "^[ -~]*$"},
}
SECURITY: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key that `chorus key create` made."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
}
_STREAM = "$response.header.X-Stream-Id"
_FOLLOWED: Json = {  # what comes with a stream that can be followed elsewhere
    "headers": {
        "X-Stream-Id": {"description": "What the stream is called.", "schema": {"type": "string"}},
        "Content-Location": {
            "description": "Where it is resumed.",
            "schema": {"type": "string", "format": "uri-reference"},
        },
    },
    "links": {
        name: {"operationId": f"resume_{name}", "parameters": {"id": _STREAM}}
        for name in ("events", "status", "cancel")
    },
}
PARTS = {
    "id": "The name of a specialist, in any spelling, or the id of a stream.",
}
ABOUT = (
    "A local team of AI specialists. Errors are problems (RFC 9457) with a plain sentence. Streams are server-sent events; "
    "each can be resumed at its cursor. A gateway on loopback without keys needs none."
)


async def show(call: Call[None]) -> Answer:
    """This description."""
    return web.Response(body=_encoded(), content_type="application/json", charset="utf-8")


@cache
def _encoded() -> bytes:
    from supervisor.gateway.operations import OPERATIONS

    return msgspec.json.encode(document(OPERATIONS))


def document(operations: Iterable[Operation]) -> Json:
    """The description of these routes."""
    described = [one for one in operations if not one.is_hidden]
    schemas = _Schemas(described)
    paths: Json = {}
    for one in described:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "chorus", "version": __version__, "description": ABOUT, "license": {"name": "MIT"}},
        "tags": [{"name": tag} for tag in dict.fromkeys(one.tag for one in described)],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "responses": {
                _named(status): _failure(status, CONTENT_TYPE, schemas.of(Problem)) for status in _failures(described)
            },
            "securitySchemes": SECURITY,
        },
        "security": [{"bearer": []}, {"apiKey": []}, {}],
    }


class _Schemas:
    """All types that are spoken of, each with its schema."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        types: list[Any] = [Problem]
        for one in operations:
            data = [type_ for types_ in one.events.values() for type_ in types_ if not isinstance(type_, str)]
            types += [one.body, one.answer, one.trouble, *data, *_types_of_query(one).values()]
        types = [one for one in types if one is not None]
        found, self.components = msgspec.json.schema_components(types, ref_template=REFERENCE)
        self._found = {repr(one): schema for one, schema in zip(types, found, strict=True)}

    def of(self, type_: Any) -> Json:
        return self._found[repr(type_)]


def _operation(one: Operation, schemas: _Schemas) -> Json:
    told: Json = {
        "operationId": one.name,
        "tags": [one.tag],
        "summary": one.summary,
        "description": _about(one),
        "parameters": _parameters(one, schemas),
        "responses": _responses(one, schemas),
        "x-scope": one.scope,
    }
    if one.body is not None:
        content = {"application/json": {"schema": schemas.of(one.body)}}
        told["requestBody"] = {"required": True, "content": content}
    if one.scope == "open":
        told["security"] = []
    return told


def _about(one: Operation) -> str:
    texts = [inspect.getdoc(one.run), inspect.getdoc(one.query) if one.query is not None else None]
    return "\n\n".join(text for text in texts if text)


def _parameters(one: Operation, schemas: _Schemas) -> list[Json]:
    found = [
        {
            "name": part,
            "in": "path",
            "required": True,
            "description": PARTS[part],
            "schema": {"type": "string", "minLength": 1},
        }
        for part in re.findall(r"\{(\w+)\}", one.path)
    ]
    for name, type_ in _types_of_query(one).items():
        found.append(
            {"name": name, "in": "query", "required": _is_asked_for(type_), "schema": _plain(schemas.of(type_))}
        )
    if "events" in one.kinds and one.method == "GET":
        found.append(CURSOR)
    if one.takes_retry_key:
        found.append(IDEMPOTENCY_KEY)
    return found


def _types_of_query(one: Operation) -> dict[str, Any]:
    return {field.encode_name: field.type for field in msgspec.structs.fields(one.query)} if one.query else {}


def _is_asked_for(type_: Any) -> bool:
    """Whether a parameter is to be given, although there are requests that do without: REQUIRED says so."""
    return any(isinstance(one, Meta) and one.extra == REQUIRED for one in get_args(type_))


def _plain(schema: Json) -> Json:
    """A parameter is there or not, and never null."""
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    return rest | choices[0] if choices else rest


def _responses(one: Operation, schemas: _Schemas) -> Json:
    bodies = {"json": schemas.of(one.answer) if one.answer is not None else {}, "events": _any_event(one, schemas)}
    content = {MEDIA[kind]: {"schema": bodies.get(kind, {"type": "string"})} for kind in one.kinds}
    told: Json = {"200": {"description": one.summary, "content": content} | (_FOLLOWED if one.has_stream_id else {})}
    if "events" in one.kinds and one.method == "GET":
        told["204"] = {"description": "The stream is over, and the reader has all of it: the end for EventSource."}
    for status in sorted({*EVERYWHERE, *one.failures}):
        told[str(status)] = {"$ref": f"#/components/responses/{_named(status)}"}
        if one.trouble is not None:
            told[str(status)] = _failure(status, MEDIA["json"], schemas.of(one.trouble))
    return told


def _any_event(one: Operation, schemas: _Schemas) -> Json:
    """What every event of a stream is: before OpenAPI 3.2, the schema of a sequence is that of each of its parts."""
    if not one.events:
        return _event({"type": "string"}, {"type": "string"})
    return {
        "anyOf": [
            _event({"const": name} if name else None, _data(type_, schemas))
            for name, types in one.events.items()
            for type_ in types
        ]
    }


def _data(type_: Any, schemas: _Schemas) -> Json:
    if isinstance(type_, str):
        return {"const": type_}
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": schemas.of(type_)}


def _event(name: Json | None, data: Json) -> Json:
    named = {"event": name} if name is not None else {}
    properties = {**named, "data": data, "id": {"type": "string"}, "retry": {"type": "integer"}}
    return {"type": "object", "properties": properties, "required": [*named, "data"]}


def _failures(operations: Iterable[Operation]) -> list[int]:
    return sorted({*EVERYWHERE, *(status for one in operations for status in one.failures)})


def _failure(status: int, media: str, schema: Json) -> Json:
    told: Json = {"description": TITLES[status], "content": {media: {"schema": schema}}}
    if status in WAITING_HELPS:
        told["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
        }
    return told


def _named(status: int) -> str:
    return TITLES[status].replace(" ", "")
