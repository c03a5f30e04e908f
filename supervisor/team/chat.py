"""One question to many at the same moment; answers as they come; whoever is silent too long is left behind.

Nobody's trouble is anybody else's: one that fails is one entry that failed, and what it had said is kept. The clock of
`timeout` is one of silence. It stands still while the model server says that it is loading the model, and, before a
specialist's first token, while a colleague is being given tokens by the same model: then it is only queueing behind it.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from msgspec import Struct

from protocol import names
from protocol.client import connect
from protocol.errors import PeerError, ProtocolError
from protocol.messages import (
    AnyReply,
    Chat,
    ChatResponse,
    Options,
    StreamChunk,
    StreamEnd,
    StreamStart,
    StreamStatus,
)
from supervisor.team.events import AnyEvent, Asked, Entry, Finished, Status, Token, Trouble

SILENCE = 10.0  # seconds, where the question does not say
BACKLOG = 4096  # events a reader may be behind; then the team waits for it, and its tokens wait in the sockets


class Member(Struct, frozen=True):
    """Somebody to ask."""

    name: str
    host: str
    port: int


class TeamQuestion(Struct, frozen=True, kw_only=True):
    """What is asked of all. `timeout` is silence in seconds for each, `deadline` seconds for the whole."""

    content: str
    timeout: float | None = None
    deadline: float | None = None
    context: dict[str, Any] | None = None
    options: Options | None = None


class _Progress:
    """How far one member has come. `limit_passed` says which limit ended it."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.scope = anyio.CancelScope()
        self.model: str | None = None
        self.last_sign = anyio.current_time()
        self.spoke = False
        self.loading = False
        self.pieces: list[str] = []
        self.limit_passed: Trouble | None = None


class _Round:
    """One question being answered by all."""

    def __init__(self, members: list[Member], question: TeamQuestion, events: MemoryObjectSendStream[AnyEvent]) -> None:
        self.question = question
        self.silence = question.timeout if question.timeout is not None else SILENCE
        self.events = events
        self.request_id = secrets.token_hex(8)
        self.began = anyio.current_time()
        self.progress = [_Progress(member) for member in members]
        self.entries: list[Entry] = []
        self.timed_out: list[Entry] = []
        self.failed: list[Entry] = []
        self.last_token: dict[str | None, float] = {}  # by model

    async def run(self) -> None:
        with self.events:
            asked = [one.member.name for one in self.progress]
            await self.events.send(Asked(request_id=self.request_id, specialists=asked))
            async with anyio.create_task_group() as clock:
                clock.start_soon(self._watch_the_clock)
                async with anyio.create_task_group() as asking:
                    for one in self.progress:
                        asking.start_soon(self._ask, one)
                clock.cancel_scope.cancel()
            await self.events.send(self._finished())

    # -- one member -----------------------------------------------------------------------------------------------------

    async def _ask(self, one: _Progress) -> None:
        entry: Entry | None = None
        try:
            with one.scope:
                entry = await self._answer(one)
            if entry is None:
                trouble = one.limit_passed or Trouble("internal", "the question was withdrawn")
                entry = self._entry(one, "".join(one.pieces), error=trouble)
                self.timed_out.append(entry)
            else:
                self.entries.append(entry)
        except ProtocolError as error:
            partial = error.partial or "".join(one.pieces)
            entry = self._entry(one, partial, error=Trouble(error.code or "unavailable", error.sentence))
            self.failed.append(entry)
        one.last_sign = math.inf  # nothing more is expected of it
        await self.events.send(entry)

    async def _answer(self, one: _Progress) -> Entry:
        question = self.question
        chat = Chat(
            request_id=self.request_id,
            content=question.content,
            stream=True,
            final="short",
            context=question.context,
            options=question.options,
        )
        member = one.member
        async with connect(member.host, member.port) as connection, aclosing(connection.ask(chat)) as replies:
            async for reply in replies:
                if isinstance(reply, ChatResponse):
                    return self._entry(one, "".join(one.pieces), reply=reply)
                await self._hear(one, reply)
        raise PeerError("the answer ended without an end")

    async def _hear(self, one: _Progress, reply: AnyReply) -> None:
        now = anyio.current_time()
        match reply:
            case StreamStart():
                one.model = reply.model
                one.last_sign = now
            case StreamStatus():
                one.loading = reply.phase == "loading"
                one.last_sign = now
                await self.events.send(Status(name=one.member.name, phase=reply.phase, position=reply.position))
            case StreamChunk():
                one.loading = False
                one.spoke = True
                one.last_sign = self.last_token[one.model] = now
                if reply.content:
                    one.pieces.append(reply.content)
                await self.events.send(
                    Token(name=one.member.name, content=reply.content or "", thinking=reply.thinking or "")
                )
            case _:
                pass  # a heartbeat: its process lives, its answer does not grow

    def _entry(
        self,
        one: _Progress,
        content: str,
        *,
        reply: ChatResponse | StreamEnd | None = None,
        error: Trouble | None = None,
    ) -> Entry:
        return Entry(
            name=one.member.name,
            specialist_id=names.specialist_id(one.member.name),
            socket_id=names.ai_id(one.member.name),
            content=content,
            timestamp=time.time(),
            elapsed=round(anyio.current_time() - self.began, 3),
            done_reason=reply.done_reason if reply else None,
            model=reply.model if reply else one.model,
            timing=reply.timing if reply else None,
            usage=reply.usage if reply else None,
            error=error,
        )

    # -- the clock ------------------------------------------------------------------------------------------------------

    async def _watch_the_clock(self) -> None:
        deadline = self.began + self.question.deadline if self.question.deadline is not None else math.inf
        while True:
            now = anyio.current_time()
            next_look = deadline
            for one in self.progress:
                limit = self._silent_at(one, now)
                if now >= limit and one.limit_passed is None:
                    self._leave(
                        one,
                        Trouble(
                            "stalled",
                            f"silent for {self.silence:g} s, and left behind: raise --timeout, or see chorus models",
                        ),
                    )
                elif one.limit_passed is None:
                    next_look = min(next_look, limit)
            if now >= deadline:
                sentence = f"not done within the deadline of {self.question.deadline:g} s"
                for one in self.progress:
                    self._leave(one, Trouble("deadline", sentence))
                return
            # Something said meanwhile only moves limits into the future: it is enough to look again at the earliest one.
            await anyio.sleep_until(min(next_look, now + self.silence))

    def _silent_at(self, one: _Progress, now: float) -> float:
        """When this member will have been silent for too long, as things stand."""
        if one.loading:
            return math.inf
        heard = one.last_sign
        if not one.spoke:
            heard = max(heard, self.last_token.get(one.model, 0.0))
        return heard + self.silence

    def _leave(self, one: _Progress, trouble: Trouble) -> None:
        if one.limit_passed is None and one.last_sign < math.inf:
            one.limit_passed = trouble
            one.scope.cancel()

    def _finished(self) -> Finished:
        return Finished(
            request_id=self.request_id,
            responses=self.entries,
            responses_by_id={entry.specialist_id: entry.content for entry in self.entries},
            timed_out=self.timed_out,
            failed=self.failed,
            elapsed_time=round(anyio.current_time() - self.began, 3),
        )


@asynccontextmanager
async def ask_team(members: list[Member], question: TeamQuestion) -> AsyncIterator[MemoryObjectReceiveStream[AnyEvent]]:
    """Asks all of them; gives the stream of what happens, from Asked to Finished.

    Leaving the block early withdraws the question everywhere: each specialist is told to cancel.
    """
    send, receive = anyio.create_memory_object_stream[AnyEvent](BACKLOG)
    async with anyio.create_task_group() as group:
        with receive:
            group.start_soon(_Round(members, question, send).run)
            try:
                yield receive
            finally:
                group.cancel_scope.cancel()
