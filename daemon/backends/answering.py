"""One answer as steps: what it waits for, its pieces, and its end. The same for every server that streams lines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from daemon.backends import Finish, Piece, Step, Waiting
from daemon.backends.call import Call
from protocol.errors import EmptyAnswer, ModelServerError, ProtocolError, Truncated


class Reading(Protocol):
    """Makes text of the lines of one answer. `over` once its end, or a failure, was among them."""

    over: bool
    finished: bool  # the answer is whole; what still comes is only read for its figures

    def take(self, lines: list[bytes]) -> Piece | None:
        """The text of all these lines together; None where there was none."""

    def rest(self) -> Piece | None:
        """Text that was held back, when no more lines come."""

    def finish(self) -> Finish:
        """How it ended; raises what failed: ModelError, Truncated, EmptyAnswer."""


class Source(Protocol):
    """What a backend says of a question under way, and is told of it."""

    def waits_for(self, call: Call) -> Waiting | None: ...
    def heard(self, call: Call) -> None: ...
    def failed(self, call: Call, error: ProtocolError) -> None: ...


async def answered(start: Callable[[], Call], reading: Reading, source: Source) -> AsyncGenerator[Step, None]:
    """The steps of one answer, which starts with the first step asked for. Closing it ends it at the model server."""
    call = start()
    said: Waiting | None = None
    heard = False
    try:
        while not await call.settled():
            waiting = source.waits_for(call) if call.is_quiet else None
            if waiting is not None and waiting != said:
                said = waiting
                yield waiting
        while not reading.over:
            lines = await call.lines()
            if not lines:
                break
            if not heard:
                heard = True
                source.heard(call)
            piece = reading.take(lines)
            if piece is not None:
                yield piece
            if reading.finished:
                call.expect_end()
        rest = reading.rest()
        if rest is not None:
            yield rest
        finish = reading.finish()
        source.heard(call)
        call.finish()
        yield finish
    except ProtocolError as error:
        if isinstance(error, ModelServerError):
            source.failed(call, error)
        raise
    finally:
        call.close()


def truncated(url: str) -> Truncated:
    return Truncated(f"the answer of {url} ended without saying that it was done: ask again, or ask for less at a time")


def empty(done_reason: str, *, thought: bool) -> EmptyAnswer:
    """Done, and not one character of content."""
    if thought and done_reason == "length":
        return EmptyAnswer("the model spent all its tokens on thinking: raise max_tokens, or ask with think false")
    if thought:
        return EmptyAnswer("the model thought, and then said nothing: ask again, or ask with think false")
    return EmptyAnswer("the model ended its answer without a single character: ask again, or ask differently")
