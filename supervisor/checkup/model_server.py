"""What a model server has, asked by HTTP, and why there is none: for `chorus models` and `chorus doctor`.

Nothing here answers questions: that is the specialists' (daemon/backends). aiohttp is imported here and nowhere else in
this package, so import this module where it is used.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import aiohttp
import msgspec
from msgspec import Struct

from daemon.backends import http
from daemon.backends.ollama_models import full_name
from daemon.backends.openai_compatible import with_version
from protocol.errors import ModelServerError, ProtocolError
from supervisor.checkup.absence import absence, no_server
from supervisor.config import Loaded

CONNECT_WITHIN = 2.0
ANSWER_WITHIN = 5.0  # /api/ps waits for each runner's lock
FOREIGN_STATUS = frozenset({301, 302, 307, 308, 400, 404, 405})  # to a question that every model server knows

T = TypeVar("T")


class Details(Struct, frozen=True):
    context_length: int | None = None
    parameter_size: str = ""
    quantization_level: str = ""


class Model(Struct, frozen=True, kw_only=True):
    """An entry of /api/tags or /api/ps. `context_length` and `size_vram` are those of a loaded one."""

    name: str
    size: int | None = None
    digest: str = ""
    details: Details | None = None
    size_vram: int | None = None
    context_length: int | None = None
    expires_at: str | None = None


class Inventory(Struct, frozen=True, kw_only=True):
    """What the server has. `loaded` maps the full name of a model to its entry of /api/ps."""

    url: str
    kind: str
    version: str | None
    models: list[Model]
    loaded: dict[str, Model] = {}

    def has(self, model: str) -> bool:
        return full_name(model) in {full_name(one.name) for one in self.models}


class _Models(Struct):
    models: list[Model] | None = None


class _Version(Struct):
    version: str = ""


class _Listed(Struct):
    id: str


class _List(Struct):
    data: list[_Listed] = []


class PullEvent(Struct, frozen=True):
    """One line of /api/pull. `digest`, `total` and `completed` (bytes) are there while a layer is fetched."""

    status: str = ""
    digest: str | None = None
    total: int | None = None
    completed: int | None = None
    error: Any = None


async def inventory(loaded: Loaded) -> Inventory:
    """Everything the configured model server has. Raises Absence."""
    async with _session(loaded) as session:
        try:
            if loaded.settings.backend.kind == "openai_compatible":
                return await _openai_inventory(session, loaded)
            return await _ollama_inventory(session, loaded)
        except http.FOREIGN as error:
            raise absence(error, loaded) from None
        except http.UNREADABLE as error:
            raise no_server(loaded, f"it says what no model server says: {http.brief(str(error))}") from None


async def pull(loaded: Loaded, model: str) -> AsyncGenerator[PullEvent, None]:
    """Has the server fetch a model; yields its progress, the last of which is `success`. Raises ProtocolError."""
    server = http.Server(loaded.url)
    decode = msgspec.json.Decoder(PullEvent).decode
    last = PullEvent()
    async with _session(loaded, patient=True) as session:
        try:
            async with session.post(f"{loaded.url}/api/pull", json={"model": model}) as response:
                if response.status != 200:
                    said = http.said_by(await response.read())
                    raise http.refused(http.Refusal(response.status, said), server, model)
                async for line in response.content:
                    if not line.strip():
                        continue
                    last = decode(line)
                    if last.error is not None:
                        raise ModelServerError(http.brief(http.unwrapped(last.error)))
                    yield last
        except http.UNREADABLE as error:
            raise no_server(loaded, f"it says what no Ollama says: {http.brief(str(error))}") from None
        except http.FOREIGN as error:
            if last.status:
                raise ModelServerError(
                    f"the connection to {loaded.url} broke ({http.brief(str(error)) or type(error).__name__})"
                ) from None
            raise absence(error, loaded) from None
    if last.status != "success":
        raise ModelServerError("the model server ended before it said that the model is there")


def _session(loaded: Loaded, *, patient: bool = False) -> aiohttp.ClientSession:
    """`patient` is for a pull, which is silent for minutes while it verifies what it fetched."""
    headers = {"Authorization": f"Bearer {loaded.api_key}"} if loaded.api_key else None
    limits = aiohttp.ClientTimeout(total=None if patient else ANSWER_WITHIN, sock_connect=CONNECT_WITHIN)
    return aiohttp.ClientSession(timeout=limits, headers=headers, read_bufsize=1 << 20)


async def _ollama_inventory(session: aiohttp.ClientSession, loaded: Loaded) -> Inventory:
    url = loaded.url
    tags = await _fetch(session, loaded, f"{url}/api/tags", _Models)
    try:
        version = (await _fetch(session, loaded, f"{url}/api/version", _Version)).version
        running = (await _fetch(session, loaded, f"{url}/api/ps", _Models)).models or []
    except (ProtocolError, *http.FOREIGN, *http.UNREADABLE):
        version, running = "", []  # from before these; or busy: /api/ps waits for each runner's lock
    in_memory = {full_name(one.name): one for one in running}
    return Inventory(url=url, kind="ollama", version=version or None, models=tags.models or [], loaded=in_memory)


async def _openai_inventory(session: aiohttp.ClientSession, loaded: Loaded) -> Inventory:
    listed = await _fetch(session, loaded, f"{with_version(loaded.url)}/models", _List)
    models = [Model(name=one.id) for one in listed.data]
    return Inventory(url=loaded.url, kind="openai_compatible", version=None, models=models)


async def _fetch(session: aiohttp.ClientSession, loaded: Loaded, url: str, type_: type[T]) -> T:
    async with session.get(url, allow_redirects=False) as response:
        body = await response.read()
    if response.status in FOREIGN_STATUS:
        raise no_server(loaded, f"{response.status} {http.brief(http.said_by(body))}")
    if response.status != 200:
        raise http.refused(http.Refusal(response.status, http.said_by(body)), http.Server(loaded.url), "")
    return msgspec.json.decode(body, type=type_)
