"""One question to many at the same moment; answers as they come; whoever is silent too long is left behind.

Nobody's trouble is anybody else's: one that fails is one entry that failed, and what it had said is kept. The clock of
`timeout` is one of silence. It stands still while the model server says that it is loading the model, and, before a
specialist's first token, while a colleague is being given tokens by the same model: then it is only queueing behind it.

When everybody has ended, one of them may be asked to make something of the answers. What arrived is told whatever becomes of
that.
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
from msgspec.structs import replace

from protocol import names
from protocol.client import connect
from protocol.errors import PeerError, ProtocolError
from protocol.messages import AnyReply, Chat, ChatResponse, Options, StreamChunk, StreamStart, StreamStatus, Turn
from supervisor.team.events import (
    AnyEvent,
    Asked,
    Consensus,
    Entry,
    Finished,
    Moderating,
    ModerationPhase,
    Status,
    Token,
    Trouble,
)
from supervisor.team.moderation import moderating

SILENCE = 10.0  # seconds, where the question does not say
MODERATOR_SILENCE = 60.0  # at least: it reads everything that was said before its first token
BACKLOG = 4096  # events a reader may be behind; then the team waits for it, and its tokens wait in the sockets


class Member(Struct, frozen=True):
    """Somebody to ask. `spelling` is the caller's, "" where there is none.

    With a `trouble` it is known not to answer: it takes part as an entry that failed.
    """

    name: str
    host: str
    port: int
    spelling: str = ""
    trouble: Trouble | None = None

    @property
    def specialist_id(self) -> str:
        return self.spelling or names.specialist_id(self.name)


class Moderation(Struct, frozen=True):
    """What is to be made of the answers, and by whom."""

    phase: ModerationPhase
    by: Member


class TeamQuestion(Struct, frozen=True, kw_only=True):
    """What is asked of all. `timeout` is silence in seconds for each, `deadline` seconds for the whole.

    `timeouts` has by their names those who may be silent for another time.
    """

    content: str
    timeout: float | None = None
    timeouts: dict[str, float] = {}
    deadline: float | None = None
    context: dict[str, Any] | None = None
    history: list[Turn] | None = None
    options: Options | None = None
    moderation: Moderation | None = None


class _Progress:
    """How far one member has come. `limit_passed` says which limit ended it; `phase` is set for the moderator."""

    def __init__(self, member: Member, silence: float, phase: ModerationPhase | None = None) -> None:
        self.member = member
        self.silence = silence
        self.phase = phase
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
        self.deadline = self.began + question.deadline if question.deadline is not None else math.inf
        self.progress = [_Progress(member, question.timeouts.get(member.name, self.silence)) for member in members]
        self.entries: list[Entry] = []
        self.timed_out: list[Entry] = []
        self.failed: list[Entry] = []
        self.moderation: Entry | None = None
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
                if self.question.moderation is not None and self.entries:
                    await self._moderate(self.question.moderation)
                clock.cancel_scope.cancel()
            await self.events.send(self._finished())

    # -- one member -----------------------------------------------------------------------------------------------------

    async def _ask(self, one: _Progress) -> None:
        question = self.question
        chat = Chat(
            content=question.content,
            stream=True,
            final="short",
            context=question.context,
            history=question.history,
            options=question.options,
        )
        entry = await self._outcome(one, chat)
        ended = self.entries if entry.error is None else self.timed_out if one.limit_passed else self.failed
        ended.append(entry)
        await self.events.send(entry)

    async def _moderate(self, moderation: Moderation) -> None:
        phase = moderation.phase
        moderator = _Progress(moderation.by, max(self.silence, MODERATOR_SILENCE), phase)
        self.progress.append(moderator)
        if anyio.current_time() >= self.deadline:
            self._leave(moderator, self._too_late())
        await self.events.send(Moderating(name=moderation.by.name, phase=phase))
        self.moderation = await self._outcome(moderator, moderating(phase, self.question.content, self.entries))

    async def _outcome(self, one: _Progress, chat: Chat) -> Entry:
        """How this member ended. Raises nothing that concerns it alone."""
        try:
            if one.member.trouble is not None:
                return self._entry(one, error=one.member.trouble)
            with one.scope:
                return self._entry(one, reply=await self._answer(one, chat))
            assert one.limit_passed is not None, "a limit alone cancels one of them"
            return self._entry(one, error=one.limit_passed)
        except ProtocolError as error:
            trouble = Trouble(error.code or "unavailable", error.sentence)
            return self._entry(one, error=trouble, partial=error.partial)
        finally:
            one.last_sign = math.inf  # nothing more is expected of it

    async def _answer(self, one: _Progress, chat: Chat) -> ChatResponse:
        member, chat = one.member, replace(chat, request_id=self.request_id)
        async with connect(member.host, member.port) as connection, aclosing(connection.ask(chat)) as replies:
            async for reply in replies:
                if isinstance(reply, ChatResponse):
                    return reply
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
                token = Token(
                    name=one.member.name,
                    content=reply.content or "",
                    thinking=reply.thinking or "",
                    phase=one.phase,
                )
                await self.events.send(token)
            case _:
                pass  # a heartbeat: its process lives, its answer does not grow

    def _entry(
        self, one: _Progress, *, reply: ChatResponse | None = None, error: Trouble | None = None, partial: str = ""
    ) -> Entry:
        member, content = one.member, "".join(one.pieces)
        if reply is not None and not content:
            content = reply.content or ""  # from one that does not stream
        return Entry(
            name=member.name,
            specialist_id=member.specialist_id,
            socket_id=names.ai_id(member.name),
            content=partial or content,
            timestamp=time.time(),
            elapsed=round(anyio.current_time() - self.began, 3),
            done_reason=reply.done_reason if reply else "cancelled" if one.limit_passed else None,
            model=reply.model if reply else one.model,
            timing=reply.timing if reply else None,
            usage=reply.usage if reply else None,
            error=error,
        )

    # -- the clock ------------------------------------------------------------------------------------------------------

    async def _watch_the_clock(self) -> None:
        while True:
            now = anyio.current_time()
            next_look = self.deadline
            for one in self.progress:
                limit = self._silent_at(one, now)
                if now >= limit and one.limit_passed is None:
                    sentence = (
                        f"silent for {one.silence:g} s, and left behind: allow a longer timeout, or see chorus models"
                    )
                    self._leave(one, Trouble("stalled", sentence))
                elif one.limit_passed is None:
                    next_look = min(next_look, limit)
            if now >= self.deadline:
                for one in self.progress:
                    self._leave(one, self._too_late())
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
        return heard + one.silence

    def _too_late(self) -> Trouble:
        return Trouble("deadline", f"not done within the deadline of {self.question.deadline:g} s")

    def _leave(self, one: _Progress, trouble: Trouble) -> None:
        if one.limit_passed is None and one.last_sign < math.inf:
            one.limit_passed = trouble
            one.scope.cancel()

    def _finished(self) -> Finished:
        told = self.moderation if self.moderation is not None and self.moderation.error is None else None
        phase = self.question.moderation.phase if self.question.moderation is not None else None
        return Finished(
            request_id=self.request_id,
            responses=self.entries,
            responses_by_id={entry.specialist_id: entry.content for entry in self.entries},
            timed_out=self.timed_out,
            failed=self.failed,
            elapsed_time=round(anyio.current_time() - self.began, 3),
            synthesis=told.content if told is not None and phase == "synthesis" else None,
            consensus=Consensus(told.content, told.specialist_id) if told and phase == "consensus" else None,
            moderation=self.moderation,
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
