"""What is known of one Ollama's models: which are installed, which are loaded, what they can, which one is ours.

One writer, the backend that owns it: `look` asks everything anew, `used` notes that a model has just
answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from daemon.backends.http import UNREADABLE, StatusError
from daemon.backends.memory import Memory, Remembered
from daemon.backends.upstream import Upstream
from protocol.errors import BackendDown, ModelMissing, ProtocolError

log = logging.getLogger(__name__)
T = TypeVar("T")


class Installed(Struct):
    """One entry of /api/tags. Older servers list no capabilities."""

    name: str
    digest: str = ""
    capabilities: list[str] | None = None


class Running(Struct):
    """One entry of /api/ps."""

    name: str
    expires_at: str = ""
    context_length: int | None = None


class Tags(Struct):
    models: list[Installed] | None = None


class Ps(Struct):
    models: list[Running] | None = None


class Show(Struct):
    capabilities: list[str] | None = None


_tags = msgspec.json.Decoder(Tags).decode
_ps = msgspec.json.Decoder(Ps).decode
_show = msgspec.json.Decoder(Show).decode


def full_name(model: str) -> str:
    """One spelling for each model: `x` is `x:latest`, and names differ in more than case."""
    name = model.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else name + ":latest"


class OllamaModels:
    """`named` is the model of the configuration, None where the first fitting one is chosen."""

    def __init__(self, upstream: Upstream, named: str | None, memory: Memory) -> None:
        self._upstream = upstream
        self._memory = memory
        self._named = named
        self._noted = False  # the memory knows that this server was seen
        self._installed: dict[str, Installed] = {}
        self._loaded: dict[str, float] = {}  # the loop's time when each goes
        self._used: dict[str, float] = {}  # when each answered last
        self._windows: dict[str, int] = {}
        self._abilities: dict[str, tuple[str, frozenset[str] | None]] = {}  # with the digest they belong to
        self.default: str | None = named

    async def look(self) -> None:
        """Asks for everything. Raises BackendDown, ModelMissing, or StatusError."""
        tags = _read(_tags, await self._upstream.fetch("GET", "/api/tags"), self._upstream.server.url)
        self._installed = {full_name(model.name): model for model in tags.models or ()}
        await self._look_at_loaded()
        await self._settle_default()
        if self.default:
            await self.abilities(self.default)

    async def _look_at_loaded(self) -> None:
        began = self._now()
        try:
            ps = _read(_ps, await self._upstream.fetch("GET", "/api/ps"), self._upstream.server.url)
        except StatusError:
            ps = Ps()  # a server from before /api/ps
        self._loaded = {full_name(model.name): self._gone_at(model) for model in ps.models or ()}
        self._used = {name: at for name, at in self._used.items() if at >= began or name in self._loaded}
        for model in ps.models or ():
            if model.context_length:
                self._windows[full_name(model.name)] = model.context_length

    async def _settle_default(self) -> None:
        """Finds the model that answers where a request names none; raises ModelMissing where there is none."""
        url = self._upstream.server.url
        if self._named is not None:
            if full_name(self._named) not in self._installed:
                raise self._upstream.server.missing(self._named)
            if not self._noted:
                self._memory.write(Remembered(url=url, model=self._memory.model_at(url), seen=True))
                self._noted = True
            return
        if self.default is not None and full_name(self.default) in self._installed:
            return
        chosen = self._memory.model_at(url)
        if chosen is None or full_name(chosen) not in self._installed:
            chosen = await self._first_that_answers()
            if chosen is not None:
                log.info(
                    "%s: no model was named, so answers come from %s; backend.model names another",
                    url,
                    chosen,
                )
                self._memory.write(Remembered(url=url, model=chosen, seen=True))
        self.default = chosen
        if chosen is None:
            raise ModelMissing(f"no model is installed at {url}: run `ollama pull llama3.2`")

    async def _first_that_answers(self) -> str | None:
        for _, model in sorted(self._installed.items(), key=lambda item: item[0].split(":")):
            abilities = await self.abilities(model.name)
            if "completion" in abilities if abilities is not None else "embed" not in model.name:
                return model.name
        return None

    async def abilities(self, model: str) -> frozenset[str] | None:
        """What the model can (completion, thinking, …), asked once; None where the server does not say."""
        name = full_name(model)
        installed = self._installed.get(name)
        if installed is not None and installed.capabilities is not None:
            return frozenset(installed.capabilities)
        digest = installed.digest if installed is not None else ""
        known = self._abilities.get(name)
        if known is None or known[0] != digest:
            known = self._abilities[name] = (digest, await self._ask_abilities(model))
        return known[1]

    async def _ask_abilities(self, model: str) -> frozenset[str] | None:
        try:
            shown = _read(_show, await self._upstream.fetch("POST", "/api/show", {"model": model}), "")
        except (StatusError, ProtocolError) as error:
            if isinstance(error, BackendDown) and not isinstance(error, _Unreadable):
                raise
            return None
        return None if shown.capabilities is None else frozenset(shown.capabilities)

    # -- what is loaded -----------------------------------------------------------------------------------------------

    def used(self, model: str) -> None:
        """The model has just answered, so it is loaded."""
        self._used[full_name(model)] = self._now()

    def gone(self, model: str) -> None:
        """Something failed: whether the model is loaded is not known any more."""
        self._used.pop(full_name(model), None)
        self._loaded.pop(full_name(model), None)

    def is_listed(self, model: str) -> bool:
        """Whether the last look saw it loaded."""
        return full_name(model) in self._loaded

    def is_loaded(self, model: str) -> bool:
        """Whether a question will find it loaded, as far as is known."""
        name, now = full_name(model), self._now()
        if now < self._loaded.get(name, 0.0):
            return True
        used = self._used.get(name)
        return used is not None and now - used < self._upstream.rhythm.look

    def window(self, model: str) -> int | None:
        """Its context in tokens, once it was seen loaded."""
        return self._windows.get(full_name(model))

    def _gone_at(self, model: Running) -> float:
        try:
            left = datetime.fromisoformat(model.expires_at).timestamp() - time.time()
        except (ValueError, OverflowError):
            left = self._upstream.rhythm.look  # until we look again
        return self._now() + left

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class _Unreadable(BackendDown):
    """An answer, but not Ollama's."""


def _read(decode: Any, body: bytes, url: str) -> Any:
    try:
        return decode(body)
    except UNREADABLE as error:
        raise _Unreadable(
            f"what answers at {url} is not Ollama ({error}): correct backend.url or backend.kind"
        ) from None
