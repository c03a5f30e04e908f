"""One question on its way to the model server, from the first moment to the last byte of the answer.

First a task waits for the status line (`open`), while whoever asked waits in `settled`; then `lines` reads
the body, in the asker's own task: no hand-over per token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import aiohttp
import anyio

from daemon.backends import http
from daemon.backends.http import FOREIGN, StatusError
from daemon.backends.silence import Silence
from protocol.errors import BackendDown, LineTooLong, ModelError, ProtocolError, Stalled
from protocol.framing import LineBuffer

if TYPE_CHECKING:
    from daemon.backends.upstream import Upstream

LONGEST_LINE = 8 * 1_048_576  # the limit of Ollama's own client


class Call:
    """The state of one question. Its opening task writes `_response` and `_failure`; the asker reads and closes."""

    def __init__(self, model: str, upstream: Upstream) -> None:
        self.model = model
        self.warming = False  # it waits for a model to be loaded; written by the opening
        self.news = asyncio.Event()  # look again: settled, silent too long, or something became known
        self._upstream = upstream
        self._loop = asyncio.get_running_loop()
        self.began = self._loop.time()
        self._silence = Silence(upstream.limits.first_byte, self._on_silence)
        self._opening = anyio.CancelScope()
        self._response: aiohttp.ClientResponse | None = None
        self._failure: ProtocolError | None = None
        self._buffer = LineBuffer(LONGEST_LINE)
        self._heard = False  # a line came
        self._complete = False  # nothing of the answer is missing
        self._closed = False

    async def open(self, opening: Callable[[Call], Awaitable[aiohttp.ClientResponse]]) -> None:
        """Runs until the status line is here, or it is known why none will come."""
        with self._opening:
            try:
                response = await opening(self)
            except StatusError as error:
                self._failure = http.refused(error.refusal, self._upstream.server, self.model)
            except ProtocolError as error:
                self._failure = error
            else:
                if self._closed:
                    response.close()
                self._response = response
        self.news.set()

    async def settled(self) -> bool:
        """Waits for the status line, but not for long: false means, look at what the wait is for and come again.

        Raises what went wrong instead.
        """
        quiet = self._upstream.rhythm.quiet
        if self._failure is None and self._response is None and not self._silence.broken:
            with anyio.move_on_after(quiet):
                await self.news.wait()
            self.news.clear()
        if self._failure is not None:
            raise self._failure
        if self._response is not None:
            return True
        if self._silence.broken:
            raise self._stalled()
        return False

    @property
    def is_quiet(self) -> bool:
        """Whether the wait has lasted long enough to be worth a word."""
        return self._loop.time() - self.began >= self._upstream.rhythm.quiet

    async def lines(self) -> list[bytes]:
        """The whole lines of the next read that completes any; a last one without its end counts; none is the end.

        Raises Stalled, ModelError, or BackendDown where not one line had come.
        """
        if self._failure is not None:
            raise self._failure
        assert self._response is not None, "lines() comes after settled()"
        silence, buffer, content = self._silence, self._buffer, self._response.content
        if self._heard:
            silence.since = self._loop.time()
        lines: list[bytes] = []
        while not lines:
            try:
                data = await content.readany()
            except FOREIGN as error:
                if self._complete:
                    return []
                raise self._failed(error) from None
            if not data:
                last = buffer.last_line()
                return [] if last is None else [last]
            buffer.feed(data)
            try:
                while (line := buffer.next_line()) is not None:
                    lines.append(line)
            except LineTooLong:
                if not lines:
                    raise self._too_long() from None
                self._failure = self._too_long()  # raised by the next call, when these lines are delivered
        silence.since = None
        if not self._heard:
            self._heard = True
            silence.allow(self._upstream.limits.silence)
            self._upstream.heard(self)
        return lines

    def expect_end(self) -> None:
        """The answer is complete; what follows must come soon, and a failure from now on is only its end."""
        if not self._complete:
            self._complete = True
            self._silence.allow(self._upstream.rhythm.after_finish)

    def finish(self) -> None:
        """The answer is complete: the rest of the body is read aside, so that the connection can be used again.

        Closing it would be right as well, but a server that is still writing then logs a failure.
        """
        response, self._response = self._response, None
        if response is not None:
            if response.content.at_eof() or not self._upstream.is_open:
                response.close()
            else:
                self._upstream.start(_read_to_the_end, response, self._upstream.rhythm.after_finish)
        self.close()

    def fail(self, failure: ProtocolError) -> None:
        """Ends the question from our side; whoever asked gets this failure."""
        if self._failure is None:
            self._failure = failure
        if self._response is not None:
            self._response.close()
        self.news.set()

    def close(self) -> None:
        """Ends generation at the model server, wherever it stands. May be called at any time, and again."""
        if self._closed:
            return
        self._closed = True
        self._silence.stop()
        self._opening.cancel()
        if self._response is not None:
            self._response.close()
        self._upstream.over(self)

    def _on_silence(self) -> None:
        if self._response is not None:
            self._response.close()  # wakes the reader
        self.news.set()

    def _failed(self, error: BaseException) -> ProtocolError:
        if self._silence.broken:
            return self._stalled()
        if self._failure is not None:
            return self._failure
        url = self._upstream.server.url
        if not self._heard:
            return BackendDown(f"{url} broke the connection before its first word: see its log, then ask again")
        return http.broken(error, self._upstream.server)

    def _too_long(self) -> ModelError:
        url = self._upstream.server.url
        return ModelError(f"{url} sent a line of more than {LONGEST_LINE} bytes: is it a model server?")

    def _stalled(self) -> Stalled:
        limit, url = self._silence.limit, self._upstream.server.url
        if self._heard:
            return Stalled(
                f"{url} was silent for {limit:g} s in the middle of the answer: ask again, or raise limits.silence"
            )
        return Stalled(
            f"{url} sent nothing for {limit:g} s (queue, load and prefill together): "
            "ask again when it has less to do, or raise limits.first_byte"
        )


async def _read_to_the_end(response: aiohttp.ClientResponse, within: float) -> None:
    try:
        with anyio.move_on_after(within):
            while await response.content.readany():
                pass
    except FOREIGN:
        pass  # the answer was complete before
    finally:
        response.close()
