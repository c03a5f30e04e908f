"""Answers from Ollama, by its own protocol.

Success is a line with `done: true`, nothing else. A model that is not loaded is loaded first, by a task of
this backend that no user can cancel: a client that leaves while Ollama loads a model for it aborts the load
for everybody.
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
from daemon.backends.http import Server, StatusError
from daemon.backends.memory import Memory
from daemon.backends.ollama_models import OllamaModels, full_name
from daemon.backends.ollama_wire import OllamaReading, chat_body, generate_body, load_body
from daemon.backends.rhythm import USUAL, Rhythm
from daemon.backends.upstream import Upstream
from daemon.backends.vectors import vectors_of
from daemon.backends.watching import Watch
from protocol.errors import BackendDown, EmptyAnswer, ModelMissing, ProtocolError, Stalled, Truncated
from protocol.messages import BackendState, BackendStateName
from protocol.settings import SpecialistConfig

log = logging.getLogger(__name__)

CHAT, GENERATE, EMBED = "/api/chat", "/api/generate", "/api/embed"


class Trouble(Struct, frozen=True):
    """Why the model server cannot answer now."""

    state: BackendStateName
    sentence: str


class WarmUp:
    """A model being loaded, and everybody who waits for it. Written by the task that loads."""

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.failure: ProtocolError | None = None


class Vectors(Struct):
    """What /api/embed answers."""

    embeddings: list[list[float]]
    model: str = ""


_vectors = msgspec.json.Decoder(Vectors).decode


def _read_vectors(body: bytes) -> tuple[list[list[float]], str]:
    vectors = _vectors(body)
    return vectors.embeddings, vectors.model


class Ollama:
    """The backend for Ollama. `run` must be running while it answers."""

    kind = "ollama"
    note: str | None = None

    def __init__(self, config: SpecialistConfig, rhythm: Rhythm = USUAL) -> None:
        self._config = config
        self._rhythm = rhythm
        self._server = Server(config.url.rstrip("/"))
        self._upstream = Upstream(self._server, config.limits, rhythm, config.api_key)
        self._models = OllamaModels(self._upstream, config.model, Memory(config.state_dir))
        self._watch = Watch(self._look, rhythm)
        self._trouble: Trouble | None = None
        self._warm_ups: dict[str, WarmUp] = {}
        self._has_chat = True  # false for a server from before /api/chat

    # -- what is known ------------------------------------------------------------------------------------------------

    @property
    def model(self) -> str:
        """The model that answers where a request names none; empty until one is known."""
        return self._models.default or ""

    @property
    def state(self) -> BackendState:
        name: BackendStateName = "ready"
        sentence = None
        if self._trouble is not None:
            name, sentence = self._trouble.state, self._trouble.sentence
        elif self._warm_ups or self._watch.looked_at is None:
            name = "loading"
        return BackendState(kind=self.kind, url=self._server.url, state=name, error=sentence)

    @property
    def context_length(self) -> int | None:
        configured = self._config.backend.options.get("num_ctx")
        return self._models.window(self.model) or (configured if isinstance(configured, int) else None)

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        async with self._upstream.open():
            task_status.started()
            await self._watch.run()

    async def look(self) -> None:
        """Returns when the state is not older than a moment."""
        await self._watch.fresh()

    async def _look(self) -> None:
        try:
            with anyio.fail_after(self._rhythm.look_limit):
                await self._models.look()
        except StatusError as error:
            self._note(http.refused(error.refusal, self._server, self.model))
        except TimeoutError:
            self._note(
                BackendDown(f"{self._server.url} does not answer within {self._rhythm.look_limit:g} s: see its log")
            )
        except ProtocolError as error:
            self._note(error)
        else:
            self._trouble = None
        self._upstream.tell_waiting()

    def _note(self, error: ProtocolError) -> None:
        state: BackendStateName = "model_missing" if isinstance(error, ModelMissing) else "down"
        if self._trouble is None or self._trouble.state != state:
            log.warning("the model server is %s: %s", state, error.sentence)
            if state == "down":
                self._has_chat = True  # whatever comes up there next may be newer
        self._trouble = Trouble(state, error.sentence)

    # -- questions ----------------------------------------------------------------------------------------------------

    def generate(self, prompt: Prompt) -> AsyncIterator[Step]:
        model = prompt.options.model or self.model
        return answered(
            lambda: self._upstream.call(model, partial(self._open, prompt)),
            OllamaReading(self._server.url),
            self,
        )

    async def embed(self, texts: list[str], model: str | None) -> tuple[list[list[float]], str]:
        return await vectors_of(self._upstream, EMBED, model or await self._default(), texts, _read_vectors)

    async def _open(self, prompt: Prompt, call: Call) -> aiohttp.ClientResponse:
        """Everything up to the status line: a first look, the warm-up where it is needed, the question."""
        if self._watch.looked_at is None:
            await self._watch.fresh()
        model = call.model = call.model or await self._default()
        abilities = await self._models.abilities(model)
        can_think = None if abilities is None else "thinking" in abilities
        # Made before the warm-up: a request that cannot be right must not load a model.
        chat = chat_body(model, prompt, self._config, can_think)
        if not self._models.is_loaded(model):
            await self._warmed_up(call)
        if self._has_chat:
            try:
                return await self._upstream.post(CHAT, chat)
            except StatusError as error:
                if not self._is_without_chat(error):
                    raise
        return await self._upstream.post(GENERATE, generate_body(model, prompt, self._config, can_think))

    async def _default(self) -> str:
        if not self.model:
            await self._watch.fresh()
        if not self.model:
            assert self._trouble is not None, "a look either finds a model or says why not"
            kind = ModelMissing if self._trouble.state == "model_missing" else BackendDown
            raise kind(self._trouble.sentence)
        return self.model

    def _is_without_chat(self, error: StatusError) -> bool:
        if error.refusal.status != 404 or error.refusal.is_missing_model:
            return False
        if self._has_chat:
            self._has_chat = False
            log.warning("%s has no %s: asking %s from now on", self._server.url, CHAT, GENERATE)
        return True

    # -- warm-up ------------------------------------------------------------------------------------------------------

    async def _warmed_up(self, call: Call) -> None:
        """Waits for the model; the first who needs it starts the load, and leaving does not end it."""
        name = full_name(call.model)
        warm_up = self._warm_ups.get(name)
        if warm_up is None:
            warm_up = self._warm_ups[name] = WarmUp()
            self._upstream.start(self._load, call.model, warm_up)
        call.warming = True
        await warm_up.over.wait()
        call.warming = False
        if warm_up.failure is not None:
            failure = warm_up.failure  # each who waited gets one of their own: what had arrived is written into it
            raise type(failure)(failure.sentence, retry_after=failure.retry_after)

    async def _load(self, model: str, warm_up: WarmUp) -> None:
        try:
            with anyio.fail_after(max(self._rhythm.load_limit, self._config.limits.first_byte)):
                await self._ask_to_load(model)
            self._models.used(model)
        except StatusError as error:
            failure = http.refused(error.refusal, self._server, model)
            # A server that cannot be asked to load can still be asked a question.
            warm_up.failure = failure if error.refusal.status >= 429 or error.refusal.is_missing_model else None
        except TimeoutError:
            warm_up.failure = Stalled(f"{self._server.url} could not load {model} in time: see its log")
        except ProtocolError as error:
            warm_up.failure = error
        finally:
            del self._warm_ups[full_name(model)]
            warm_up.over.set()
        self._watch.ask()  # its context is known now

    async def _ask_to_load(self, model: str) -> None:
        body = load_body(model, self._config)
        try:
            answer = await self._upstream.fetch("POST", CHAT if self._has_chat else GENERATE, body)
        except StatusError as error:
            if not self._has_chat or not self._is_without_chat(error):
                raise
            answer = await self._upstream.fetch("POST", GENERATE, body)
        reading = OllamaReading(self._server.url)
        reading.take(answer.splitlines())
        reading.raise_failure()

    # -- what answering() asks and tells ------------------------------------------------------------------------------

    def waits_for(self, call: Call) -> Waiting | None:
        if call.warming:
            return Waiting("loading")
        ahead = self._upstream.ahead_of(call)
        if ahead:
            return Waiting("queued", ahead)
        if self._watch.looked_at is None or self._watch.looked_at < call.began:
            self._watch.ask()  # and come back when it is known
            return None
        if self._models.is_listed(call.model):
            return Waiting("prefill")
        self._watch.ask()
        return Waiting("loading")

    def heard(self, call: Call) -> None:
        self._models.used(call.model)
        if self._trouble is not None and full_name(call.model) == full_name(self.model):
            self._trouble = None

    def failed(self, call: Call, error: ProtocolError) -> None:
        if not isinstance(error, EmptyAnswer | Truncated):  # these say nothing about the server
            self._models.gone(call.model)
        if isinstance(error, BackendDown) or (
            isinstance(error, ModelMissing) and full_name(call.model) == full_name(self.model)
        ):
            self._note(error)
        self._watch.ask()
