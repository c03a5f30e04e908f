"""The colleague: persona, session and context in, tokens out. Knows nothing of sockets or of how a reply looks on the wire."""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import anyio
import anyio.abc
import msgspec

from daemon.answer import Answer, Listener, shortened, size_of
from daemon.backends import Backend, Finish, Piece, Prompt, Step, Waiting
from daemon.prompt import TokenRatio, beside, fitting, user_turn
from daemon.sessions import Said, Sessions
from daemon.vitals import Lag, resident_bytes
from protocol import __version__
from protocol.codec import read_context
from protocol.errors import BadRequest, DeadlinePassed, Draining, EmptyAnswer, ProtocolError
from protocol.messages import (
    PROTOCOL_VERSION,
    Chat,
    DoneReason,
    Embed,
    EmbedResponse,
    HealthResponse,
    History,
    HistoryResponse,
    InfoResponse,
    Ping,
    Pong,
    Reset,
    ResetResponse,
    Turn,
)
from protocol.settings import SpecialistConfig

logger = logging.getLogger("chorus.daemon")

SMALLEST_PROMPT_SHARE = 0.5  # of the context: an answer may not reserve more than the rest


class Specialist:
    """One specialist of one process. `instance` is new with every process: a restart can be seen.

    The server counts `clients`, and `in_flight` and `queued` requests, into the vitals.
    """

    def __init__(self, config: SpecialistConfig, backend: Backend) -> None:
        self.config = config
        self.backend = backend
        self.sessions = Sessions(Path(config.data_dir) / "sessions" / f"{config.name}.db", config.retention_days)
        self.instance = secrets.token_hex(8)
        self.draining = False
        self.clients = 0
        self.in_flight = 0
        self.queued = 0
        self.buffered_bytes = 0
        self._answered = 0
        self._last = Finish(done_reason="stop")
        self._first_token_ms: float | None = None
        self._ratio = TokenRatio()
        self._born = time.monotonic()
        self._lag = Lag()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Watches the model server and the event loop until cancelled."""
        self._lag.start()
        try:
            await self.backend.run(task_status=task_status)
        finally:
            self._lag.stop()

    def begin(self, chat: Chat, session_id: str | None = None, *, earlier: bool = False, asked: float) -> Answer:
        """An answer to be, or BadRequest or Draining at once.

        `session_id` is the conversation's own, `earlier` whether something was said in it; the caller's session wins.
        `asked` is when the question arrived: it may have waited for its turn, and its deadline with it.
        """
        if self.draining:
            name = self.config.name
            sentence = f"{name} takes no new questions: ask again in a moment; if it stays so, chorus start {name}"
            raise Draining(sentence, retry_after=1.0)
        context = read_context(chat.context)
        if not chat.text.strip() and not context.previous_response:
            raise BadRequest("content: empty; say what to answer")
        earlier = context.session_id is not None or earlier
        session = context.session_id or session_id or secrets.token_hex(8)
        name = self.config.name
        return Answer(chat, context, session, name, self.backend.model, earlier=earlier, asked=asked)

    async def answer(self, answer: Answer, listener: Listener) -> DoneReason:
        """Generates until the end and stores what was said. Raises one of protocol.errors, with what had arrived."""
        try:
            with anyio.move_on_after(answer.time_left) as patience:
                prompt = await self._prompt(answer)
                answer.begin()
                answer.model = prompt.options.model or self.backend.model
                listener.started(answer.model)
                done_reason = await self._generate(answer, prompt, listener)
            if patience.cancelled_caught:
                raise DeadlinePassed(f"no complete answer within the deadline of {answer.chat.deadline:g} s")
        except ProtocolError as error:
            error.partial = answer.content
            await self.remember(answer, error.code)
            raise
        self._learn(answer, prompt)
        await self.remember(answer, done_reason)
        return done_reason

    async def remember(self, answer: Answer, done_reason: str) -> None:
        """Stores an answer, whole or partial; a disk that fails becomes a notice, not a lost answer."""
        if not answer.content:
            return
        asked = Said(user_turn(answer.context, answer.chat.text), answer.asked_at)
        said = Said(answer.content, time.time())
        try:
            await self.sessions.add(answer.session_id, asked, said, answer.model, done_reason)
        except (sqlite3.Error, OSError) as error:
            logger.error("cannot store a turn of session %s: %s", answer.session_id, error)
            answer.notices.append(f"this turn could not be stored: {error}")

    async def history(self, request: History) -> HistoryResponse:
        turns, total = await self.sessions.history(request.session_id, request.limit, request.before)
        return HistoryResponse(request_id=request.request_id, conversations=turns, total=total)

    async def reset(self, request: Reset) -> ResetResponse:
        if request.session_id is None:  # an omission must not forget everybody's sessions
            raise BadRequest("session_id: missing; name the session to forget")
        removed = await self.sessions.forget(request.session_id)
        return ResetResponse(request_id=request.request_id, session_id=request.session_id, removed=removed)

    async def embed(self, request: Embed) -> EmbedResponse:
        texts = [request.input] if isinstance(request.input, str) else request.input
        vectors, model = await self.backend.embed(texts, request.model or self.config.model)
        return EmbedResponse(request_id=request.request_id, embeddings=vectors, model=model)

    def ping(self, request: Ping) -> Pong:
        return Pong(
            request_id=request.request_id,
            ai_id=self.config.ai_id,
            status="ok",
            pid=os.getpid(),
            instance=self.instance,
            timestamp=request.timestamp if request.timestamp is not None else time.time(),
        )

    def health(self, request_id: str | int | None = None) -> HealthResponse:
        """How we are, every figure measured."""
        backend = self.backend.state
        healthy = backend.state in ("ready", "loading")
        return HealthResponse(
            request_id=request_id,
            ai_id=self.config.ai_id,
            status="draining" if self.draining else "healthy" if healthy else "degraded",
            component=self.config.name,
            model=self.backend.model,
            pid=os.getpid(),
            instance=self.instance,
            clients=self.clients,
            in_flight=self.in_flight,
            queued=self.queued,
            backend=backend,
            uptime=round(time.monotonic() - self._born, 3),
            rss_bytes=resident_bytes(),
            loop_lag_ms=round(self._lag.seconds * 1000, 3),
            answered=self._answered,
            first_token_ms=self._first_token_ms,
            tokens_per_second=self._last.tokens_per_second,
            prompt_tokens_per_second=self._last.prompt_tokens_per_second,
            buffered_bytes=self.buffered_bytes,
        )

    def info(self, request_id: str | int | None = None) -> InfoResponse:
        config = self.config
        limits = {key: float(value) for key, value in msgspec.structs.asdict(config.limits).items()}
        return InfoResponse(
            request_id=request_id,
            ai_id=config.ai_id,
            component=config.name,
            description=config.description,
            model_provider=self.backend.kind,
            model_name=self.backend.model,
            system_prompt=config.persona,
            port=config.port,
            capabilities=config.capabilities,
            protocol=PROTOCOL_VERSION,
            limits=limits,
            version=__version__,
            note=self.backend.note,
        )

    # -- one answer -----------------------------------------------------------------------------------------------------

    async def _prompt(self, answer: Answer) -> Prompt:
        chat, context = answer.chat, answer.context
        options = chat.merged_options()
        if options.model is None and self.config.model is not None:
            options = msgspec.structs.replace(options, model=self.config.model)
        system, turns = beside(self.config.persona, await self._earlier_turns(answer))
        asked = Turn("user", user_turn(context, chat.text))
        window = self.backend.context_length
        if window is not None:
            # The answer's share is reserved inside the window, or generation would push the prompt out of it.
            reserve = min(options.max_tokens or self.config.limits.answer_tokens, int(window * SMALLEST_PROMPT_SHARE))
            options = msgspec.structs.replace(options, max_tokens=options.max_tokens or reserve)
            fixed = system + asked.content
            kept = fitting(turns, fixed, window - reserve, self._ratio.value)
            if len(kept) < len(turns):
                await self._cut(answer, len(turns) - len(kept), len(kept), window)
            turns = kept
        return Prompt(system, [*turns, asked], options)

    async def _earlier_turns(self, answer: Answer) -> list[Turn]:
        """What the caller says was said before, or what we remember of the session."""
        if answer.chat.history is not None:
            return answer.chat.history
        if not answer.earlier:
            return []  # a session that has just been made: no look-up before the first token
        return await self.sessions.turns(answer.session_id)

    async def _cut(self, answer: Answer, dropped: int, kept: int, window: int) -> None:
        answer.notices.append(f"the {dropped} oldest turns were left out: the model's context holds {window} tokens")
        if answer.chat.history is None:
            await self.sessions.cut(answer.session_id, kept)

    async def _generate(self, answer: Answer, prompt: Prompt, listener: Listener) -> DoneReason:
        limit = self.config.limits.max_reply_bytes
        steps: AsyncIterator[Step] = self.backend.generate(prompt)
        async with aclosing(steps):  # type: ignore[type-var]
            async for step in steps:
                if isinstance(step, Piece):
                    fits = answer.size + size_of(step) <= limit
                    piece = step if fits else shortened(step, limit - answer.size)
                    answer.add(piece)
                    listener.piece(piece)
                    if not fits:
                        return self._too_long(answer)
                elif isinstance(step, Waiting):
                    listener.waiting(step)
                else:
                    answer.finish = step
        assert isinstance(answer.finish, Finish), "a backend ends with a Finish or raises"
        return "length" if answer.finish.done_reason == "length" else "stop"

    def _too_long(self, answer: Answer) -> DoneReason:
        if not answer.content:
            raise EmptyAnswer("the model thought for all of max_reply_bytes, and said nothing: ask with think false")
        return "length"

    def _learn(self, answer: Answer, prompt: Prompt) -> None:
        self._answered += 1
        self._first_token_ms = answer.first_token_ms
        if answer.finish is None:
            return  # we ended it, at max_reply_bytes: nothing was counted
        self._last = answer.finish
        if counted := answer.finish.prompt_tokens:
            characters = len(prompt.system) + sum(len(turn.content) for turn in prompt.turns)
            self._ratio.learn(characters, counted)
