"""The requests of one connection: which are under way, in what order they are answered, and how each one ends.

Those with a request_id run side by side; those without are answered one after the other. Each ends exactly once: with an
answer, with an error, or, when its client is gone, with nothing.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import anyio

from daemon.answer import Answer
from daemon.commands import is_command, run_command
from daemon.replies import JsonStream, PlainText, Quiet
from protocol.codec import error_reply, stream_error
from protocol.errors import BadRequest, Busy, Draining, NotFound, ProtocolError
from protocol.messages import (
    AnyRequest,
    Cancel,
    Cancelled,
    Chat,
    DoneReason,
    Embed,
    History,
    Reply,
    RequestId,
    Reset,
)

if TYPE_CHECKING:
    from daemon.conversation import Conversation
    from daemon.server import Server

Why = Literal["cancelled", "gone", "draining"]
STORE_WITHIN = 2.0  # seconds for keeping the partial text of an answer that was cut short


class Running:
    """One request under way. `why` is set by whoever cancels it, before the scope is.

    `refuse` is how its client is told that it failed; a stream that has started is told otherwise than before.
    """

    def __init__(
        self,
        request_id: RequestId | None,
        work: Callable[[Running], Awaitable[None]],
        refuse: Callable[[ProtocolError], None],
    ) -> None:
        self.request_id = request_id
        self.work = work
        self.refuse = refuse
        self.asked = time.monotonic()
        self.answer: Answer | None = None
        self.scope = anyio.CancelScope()
        self.why: Why | None = None

    def cancel(self, why: Why) -> None:
        if self.why is None:
            self.why = why
            self.scope.cancel()


class Requests:
    """All requests of one connection. Written on the event loop by the conversation and by the requests' own tasks."""

    def __init__(self, conversation: Conversation, server: Server) -> None:
        self._conversation = conversation
        self._server = server
        self._specialist = server.specialist
        self._running: list[Running] = []
        self._queue: deque[Running] = deque()  # those without a request_id that wait for their turn
        self._in_turn = False  # one of those is being answered
        self._session_id = ""
        self._earlier = False  # something was said in this connection's own session

    @property
    def under_way(self) -> bool:
        return bool(self._running or self._queue)

    @property
    def growing(self) -> int:
        """Bytes of the answers that are under way."""
        return sum(running.answer.size for running in self._running if running.answer is not None)

    def start(self, request: AnyRequest) -> None:
        """Takes a JSON request, or refuses it."""
        if self._is_full(request.request_id):
            return
        if request.request_id is not None and any(one.request_id == request.request_id for one in self._running):
            error = BadRequest(f"request_id: {request.request_id!r} is already under way on this connection")
            self._conversation.refuse(error, request.request_id)
            return

        async def work(running: Running) -> None:
            if isinstance(request, Chat):
                await self._chat(running, request)
            else:
                await self._other(running, request)

        refuse = partial(self._conversation.refuse, request_id=request.request_id)
        self._enlist(Running(request.request_id, work, refuse))

    def start_plain(self, text: str) -> None:
        """Takes a message of plain text, or refuses it."""
        if self._is_full(None, plain=True):
            return

        async def work(running: Running) -> None:
            if is_command(text):
                await self._command(running, text)
            else:
                await self._plain(running, text)

        self._enlist(Running(None, work, partial(self._conversation.refuse, plain=True)))

    def refuse_in_order(self, error: ProtocolError, request_id: RequestId | None, *, plain: bool = False) -> None:
        """Answers a line that is no request: at once, or in its turn when answers without a request_id are due first."""
        if request_id is not None or not (self._in_turn or self._queue) or self._count() >= self._limit():
            self._conversation.refuse(error, request_id, plain=plain)
            return

        async def work(running: Running) -> None:
            running.refuse(error)

        self._enlist(Running(None, work, partial(self._conversation.refuse, plain=plain)))

    def cancel(self, request: Cancel) -> None:
        """Ends the request that the client names."""
        for running in self._running:
            if running.request_id == request.target:
                running.cancel("cancelled")
                self._conversation.send(Cancelled(request.request_id, target=request.target))
                return
        error = NotFound(f"no request {request.target!r} is under way on this connection")
        self._conversation.refuse(error, request.request_id)

    def cancel_all(self, why: Why) -> None:
        if why == "gone":
            self._specialist.queued -= len(self._queue)
            self._queue.clear()
        for running in list(self._running):
            running.cancel(why)
        if why == "draining":
            for waiting in list(self._queue):
                waiting.cancel(why)

    # -- order ------------------------------------------------------------------------------------------------------------

    def _count(self) -> int:
        return len(self._running) + len(self._queue)

    def _limit(self) -> int:
        return self._server.limits.in_flight

    def _is_full(self, request_id: RequestId | None, *, plain: bool = False) -> bool:
        if self._count() < self._limit():
            return False
        sentence = f"{self._limit()} requests are under way on this connection: wait for an answer, or cancel one"
        self._conversation.refuse(Busy(sentence, retry_after=1.0), request_id, plain=plain)
        return True

    def _enlist(self, running: Running) -> None:
        if running.request_id is not None:
            self._begin(running)
        elif self._in_turn:
            self._queue.append(running)
            self._specialist.queued += 1
        else:
            self._in_turn = True
            self._begin(running)

    def _begin(self, running: Running) -> None:
        self._running.append(running)
        self._server.start(self._serve, running)

    async def _serve(self, running: Running) -> None:
        self._specialist.in_flight += 1
        try:
            await running.work(running)
        except Exception:  # noqa: BLE001 - the fence: one request failing is a log line and an error, never the server
            arrived = running.answer.content if running.answer else ""
            running.refuse(self._server.failure("a request failed", arrived))
        finally:
            self._specialist.in_flight -= 1
            self._running.remove(running)
            if running.request_id is None:
                self._next_in_turn()
            self._conversation.rest()

    def _next_in_turn(self) -> None:
        self._in_turn = bool(self._queue)
        if self._queue:
            self._specialist.queued -= 1
            self._begin(self._queue.popleft())

    # -- kinds of requests ----------------------------------------------------------------------------------------------------

    async def _other(self, running: Running, request: AnyRequest) -> None:
        try:
            reply: Reply
            match request:
                case History():
                    reply = await self._specialist.history(request)
                case Reset():
                    reply = await self._specialist.reset(request)
                case Embed():
                    with running.scope:
                        reply = await self._specialist.embed(request)
                    if running.scope.cancelled_caught:
                        raise self._stopped() if running.why == "draining" else NotFound("the request was cancelled")
                case _:
                    raise AssertionError(f"{type(request).__name__} is answered elsewhere")
            self._conversation.send(reply)
        except ProtocolError as error:
            self._conversation.refuse(error, request.request_id)

    async def _chat(self, running: Running, chat: Chat) -> None:
        ai_id = self._specialist.config.ai_id
        told = JsonStream(self._conversation.send, chat.request_id, ai_id) if chat.stream else Quiet()

        def refuse(error: ProtocolError) -> None:
            reply = stream_error if told.started_stream else error_reply
            self._conversation.send(reply(error, chat.request_id, ai_id))

        running.refuse = refuse
        try:
            answer = self._specialist.begin(chat, asked=running.asked)
            done_reason = await self._answer(running, answer, told)
            if done_reason is None:
                return
            if isinstance(told, JsonStream):
                if not told.started_stream:  # cancelled before its first step
                    told.started(answer.model)
                told.tell(answer.stream_end(done_reason))
            else:
                self._conversation.send(answer.response(done_reason))
        except ProtocolError as error:
            refuse(error)
        finally:
            told.close()

    async def _plain(self, running: Running, text: str) -> None:
        told = PlainText(self._conversation.write, self._conversation.end_line)
        self._session_id = self._session_id or secrets.token_hex(8)
        try:
            chat = Chat(content=text)
            answer = self._specialist.begin(chat, self._session_id, earlier=self._earlier, asked=running.asked)
            self._earlier = True
            if await self._answer(running, answer, told) is None:
                return
            told.end()
        except ProtocolError as error:
            running.refuse(error)

    async def _command(self, running: Running, text: str) -> None:
        told = PlainText(self._conversation.write, self._conversation.end_line)
        self._session_id = self._session_id or secrets.token_hex(8)
        said = await run_command(text, self._specialist, self._session_id)
        if said is None:
            self._conversation.want_close()
        else:
            told.line(said)

    async def _answer(
        self, running: Running, answer: Answer, told: JsonStream | Quiet | PlainText
    ) -> DoneReason | None:
        """Generates; returns how it ended, or None when nobody is there to be told."""
        running.answer = answer
        with running.scope:
            return await self._specialist.answer(answer, told)
        # Behind the scope: what is stored and said after a cancellation is not cancelled with it.
        return await self._cut_short(running, answer)

    async def _cut_short(self, running: Running, answer: Answer) -> DoneReason | None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(STORE_WITHIN):
            await self._specialist.remember(answer, running.why or "gone")
        if running.why == "draining":
            raise self._stopped(answer.content)
        return "cancelled" if running.why == "cancelled" else None

    def _stopped(self, partial: str = "") -> Draining:
        name = self._specialist.config.name
        return Draining(f"{name} stopped before the answer was whole", partial=partial, retry_after=1.0)
