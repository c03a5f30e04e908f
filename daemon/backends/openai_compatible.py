"""Answers from any server that speaks OpenAI's chat protocol: llama.cpp, vLLM, LM Studio and their like.

Success is a finish_reason, nothing else; `[DONE]` alone is none. Such servers do not say what is loaded, so
there is no warm-up, and a wait is either the queue or the prompt.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from functools import partial

import aiohttp
import anyio
import msgspec
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus
from msgspec import Struct

from daemon.backends import Prompt, Step, Waiting, http
from daemon.backends.answering import answered
from daemon.backends.call import Call
from daemon.backends.http import UNREADABLE, Server, StatusError
from daemon.backends.memory import Memory, Remembered
from daemon.backends.openai_wire import OpenAIReading, completion_body
from daemon.backends.rhythm import USUAL, Rhythm
from daemon.backends.upstream import Upstream
from daemon.backends.vectors import vectors_of
from daemon.backends.watching import Watch
from protocol.errors import BackendDown, ModelMissing, ProtocolError
from protocol.messages import BackendState, BackendStateName
from protocol.settings import SpecialistConfig

log = logging.getLogger(__name__)


class Listed(Struct):
    id: str


class ModelList(Struct):
    data: list[Listed] | None = None


class Vector(Struct):
    embedding: list[float]
    index: int = 0


class Vectors(Struct):
    data: list[Vector]
    model: str = ""


_list = msgspec.json.Decoder(ModelList).decode
_vectors = msgspec.json.Decoder(Vectors).decode


def _read_vectors(body: bytes) -> tuple[list[list[float]], str]:
    """In the order of the texts: the server numbers them, and may answer in another order."""
    vectors = _vectors(body)
    return [vector.embedding for vector in sorted(vectors.data, key=lambda one: one.index)], vectors.model


class OpenAICompatible:
    """The backend for OpenAI's protocol. `run` must be running while it answers."""

    kind = "openai_compatible"
    note: str | None = None
    context_length: int | None = None  # the protocol does not say

    def __init__(self, config: SpecialistConfig, rhythm: Rhythm = USUAL) -> None:
        self._config = config
        self._rhythm = rhythm
        self._server = Server(
            with_version(config.url),
            start="start the model server there",
            obtain="name one that it lists with backend.model",
        )
        self._upstream = Upstream(self._server, config.limits, rhythm, config.api_key)
        self._memory = Memory(config.state_dir)
        self._watch = Watch(self._look, rhythm)
        self._chosen = config.model
        self._answered: set[str] = set()  # models that answered, listed or not
        self._state: BackendStateName = "loading"
        self._sentence: str | None = None

    @property
    def model(self) -> str:
        """The model that answers where a request names none; empty until one is known."""
        return self._chosen or ""

    @property
    def state(self) -> BackendState:
        return BackendState(kind=self.kind, url=self._server.url, state=self._state, error=self._sentence)

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        async with self._upstream.open():
            task_status.started()
            await self._watch.run()

    # -- the server's state -------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        url = self._server.url
        try:
            with anyio.fail_after(self._rhythm.look_limit):
                body = await self._upstream.fetch("GET", "/models")
            self._choose(sorted(model.id for model in _list(body).data or ()))
        except StatusError as error:
            if error.refusal.status == 404 and self._chosen is not None:
                self._ready()  # a server without the list, and we know what to ask for
            else:
                self._note(http.refused(error.refusal, self._server, self.model))
        except TimeoutError:
            self._note(BackendDown(f"{url} does not answer within {self._rhythm.look_limit:g} s: see its log"))
        except UNREADABLE as error:
            self._note(BackendDown(f"what answers at {url} lists no models ({error}): correct backend.url"))
        except ProtocolError as error:
            self._note(error)
        self._upstream.tell_waiting()

    def _choose(self, listed: list[str]) -> None:
        """Sets the state by the list, and the model where none was named; raises ModelMissing."""
        url = self._server.url
        if self._config.model is None and self._chosen not in listed:
            chosen = self._memory.model_at(url)
            if chosen not in listed:
                chosen = next((model for model in listed if "embed" not in model.lower()), None)
                if chosen is None:
                    raise ModelMissing(f"{url} lists no model: load one there")
                log.info(
                    "%s: no model was named, so answers come from %s; backend.model names another",
                    url,
                    chosen,
                )
            self._chosen = chosen
        if self._chosen not in listed and self._chosen not in self._answered:
            known = ", ".join(listed[:5]) or "none"
            raise ModelMissing(f"{url} does not list the model {self._chosen}: it has {known}; set backend.model")
        remembered = self._memory.model_at(url) if self._config.model else self._chosen
        self._memory.write(Remembered(url=url, model=remembered, seen=True))
        self._ready()

    def _ready(self) -> None:
        self._state, self._sentence = "ready", None

    def _note(self, error: ProtocolError) -> None:
        state: BackendStateName = "model_missing" if isinstance(error, ModelMissing) else "down"
        if self._state != state:
            log.warning("the model server is %s: %s", state, error.sentence)
        self._state, self._sentence = state, error.sentence

    # -- questions ----------------------------------------------------------------------------------------------------

    def generate(self, prompt: Prompt) -> AsyncIterator[Step]:
        model = prompt.options.model or self.model
        return answered(
            lambda: self._upstream.call(model, partial(self._open, prompt)),
            OpenAIReading(self._server.url),
            self,
        )

    async def _open(self, prompt: Prompt, call: Call) -> aiohttp.ClientResponse:
        model = call.model = call.model or await self._default()
        return await self._upstream.post("/chat/completions", completion_body(model, prompt, self._config))

    async def embed(self, texts: list[str], model: str | None) -> tuple[list[list[float]], str]:
        return await vectors_of(self._upstream, "/embeddings", model or await self._default(), texts, _read_vectors)

    async def _default(self) -> str:
        if not self.model:
            await self._watch.fresh()
        if not self.model:
            kind = ModelMissing if self._state == "model_missing" else BackendDown
            raise kind(self._sentence or f"{self._server.url} has no model: set backend.model")
        return self.model

    # -- what answering() asks and tells ------------------------------------------------------------------------------

    def waits_for(self, call: Call) -> Waiting | None:
        ahead = self._upstream.ahead_of(call)
        return Waiting("queued", ahead) if ahead else Waiting("prefill")

    def heard(self, call: Call) -> None:
        self._answered.add(call.model)
        if call.model == self.model:
            self._ready()

    def failed(self, call: Call, error: ProtocolError) -> None:
        if isinstance(error, BackendDown) or (isinstance(error, ModelMissing) and call.model == self.model):
            self._answered.discard(call.model)
            self._note(error)
        self._watch.ask()


def with_version(url: str) -> str:
    """The address of version 1 of the protocol, whether or not the user wrote it."""
    url = url.rstrip("/")
    return url if url.endswith("/v1") else url + "/v1"
