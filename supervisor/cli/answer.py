"""One answer at the terminal, from the question to the closing line: what `ask`, `chat` and a synthesis have in common.

The answer goes to standard output, or as the wire's lines for programs; everything else goes to standard error. Ctrl-C says
`cancel`, waits a moment for the end that the specialist then sends, and keeps what came.
"""

from __future__ import annotations

import sys
from contextlib import aclosing

import anyio
import click

from protocol.client import Connection, connect
from protocol.codec import encode
from protocol.errors import ConnectionLost, ProtocolError, Refused, WrongReply
from protocol.messages import AnyReply, Chat, ChatResponse, Heartbeat, StreamChunk, StreamEnd, StreamStart, StreamStatus
from supervisor.cli import look
from supervisor.cli.exits import Failure, failure_of
from supervisor.cli.saved import Saved
from supervisor.cli.stream import Outlet, Spinner, tell, watch_interrupts
from supervisor.cli.whom import Colleagues, Place

END_WITHIN = 1.0  # seconds after Ctrl-C for the end of the stream, and for writing what had come
SIGN_WITHIN = 15.0  # five heartbeats: a process that lets so many pass is stopped or hung
BUILTIN = "builtin"
BUILTIN_NOTICE = (
    "answers come from the built-in echo, not from a language model  "
    "do: start Ollama (ollama serve) and ollama pull llama3.2; the team moves over by itself"
)
PHASES = {"queued": "queued", "loading": "loading model", "prefill": "prefill: reading the question"}
REMEDIES = {
    "backend_down": "start the model server (ollama serve), or look with: chorus doctor",
    "stalled": "chorus doctor",
    "busy": "ask again in a moment",
    "draining": "ask again in a moment",
    "internal": "chorus logs",
}


class Asking:
    """One question to one specialist. `run` asks and shows; then the fields say how it went.

    `error` is why there is no whole answer; `signal` the one that interrupted it.
    """

    def __init__(
        self,
        place: Place,
        chat: Chat,
        outlet: Outlet,
        *,
        as_json: bool = False,
        think: bool = False,
        saved: Saved | None = None,
        quiet: bool = False,
    ) -> None:
        self.place = place
        self.chat = chat
        self.outlet = outlet
        self.error: ProtocolError | None = None
        self.signal: int | None = None
        self.end: ChatResponse | None = None
        self.model: str | None = None
        self.elapsed = 0.0
        self._as_json = as_json
        self._think = think
        self._saved = saved
        self._pieces: list[str] = []
        self._thought = False  # thinking is on the screen, its line unfinished
        self._spinner = Spinner(wanted=not quiet)
        self._began = anyio.current_time()
        self._patience = anyio.CancelScope()
        self._group = anyio.create_task_group()
        self._connection: Connection | None = None

    @property
    def content(self) -> str:
        return "".join(self._pieces)

    @property
    def tokens(self) -> int | None:
        """As the model server counted them; of an answer that was cut short, which it does not count, the pieces."""
        if self.end is not None and self.end.usage is not None:
            return self.end.usage.completion_tokens
        return len(self._pieces) if self.signal is not None else None

    async def run(self) -> None:
        """Asks and shows. Raises only what writing to standard output met."""
        async with self._group as group:
            await group.start(watch_interrupts, self._interrupt, self._spinner.erase)
            group.start_soon(self.outlet.run, group.cancel_scope)
            group.start_soon(self._spinner.run)
            with self._patience:
                try:
                    await self._ask()
                except ProtocolError as error:
                    self.error = error
                await self._finish()
            group.cancel_scope.cancel()
        self._spinner.stop()
        self.elapsed = anyio.current_time() - self._began
        self.outlet.check()

    def failure(self, everybody: Colleagues) -> Failure:
        """What to say at the end of one that failed."""
        assert self.error is not None
        if isinstance(self.error, Refused):
            return everybody.unreachable(self.place.name)
        failure = failure_of(self.error)
        failure.remedy = REMEDIES.get(failure.code)
        if isinstance(self.error, ConnectionLost):
            failure.sentence = f"{self.place.name} went away: {self.error.sentence}"
            failure.remedy = f"chorus status {self.place.name}"
        return failure

    # -- the stream -----------------------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        self._spinner.say(f"{self.place.name}: connecting")
        async with connect(self.place.host, self.place.port) as connection:
            self._connection = connection
            async with aclosing(connection.ask(self.chat)) as replies:
                while self.end is None:
                    with anyio.move_on_after(SIGN_WITHIN) as patience:
                        self._hear(await anext(replies, None))
                    if patience.cancelled_caught:
                        raise ConnectionLost(f"no sign of it for {SIGN_WITHIN:g} s, not even a heartbeat")
            self._connection = None

    def _hear(self, reply: AnyReply | None) -> None:
        match reply:
            case None:
                raise WrongReply("the answer ended without an end")
            case StreamStart():
                self.model = reply.model
                self._spinner.say(f"{self.place.name}: waiting for {reply.model}")
            case StreamStatus():
                ahead = f" ({reply.position - 1} ahead)" if reply.position else ""
                self._spinner.say(f"{self.place.name}: {PHASES[reply.phase]}{ahead}")
            case StreamChunk():
                self._grow(reply.content or "", reply.thinking or "")
            case ChatResponse():
                if not isinstance(reply, StreamEnd):  # one that does not stream
                    self._grow(reply.content or "", "")
                self.end = reply
                self.model = reply.model
            case _:
                pass
        if self._as_json and not isinstance(reply, Heartbeat):
            self.outlet.put(encode(reply).decode())

    def _grow(self, content: str, thinking: str) -> None:
        if thinking and self._think:
            self._spinner.stop()
            self._show_thinking(thinking)
        elif thinking:
            self._spinner.say(f"{self.place.name}: thinking")
        if not content:
            return
        self._spinner.stop()
        self._end_thinking()
        self._pieces.append(content)
        if not self._as_json:
            self.outlet.put(content)
        if self._saved is not None:
            self._saved.write(content)

    def _show_thinking(self, text: str) -> None:
        if sys.stderr.isatty():
            text = look.harmless(text)
        sys.stderr.write(click.style(text, dim=True) if look.wants_colour(sys.stderr) else text)
        sys.stderr.flush()
        self._thought = True

    def _end_thinking(self) -> None:
        if self._thought:
            tell("\n")
            self._thought = False

    async def _finish(self) -> None:
        self._spinner.stop()
        self._end_thinking()
        if self._pieces and not self._as_json:
            self.outlet.end_line()
        await self.outlet.drained()

    # -- Ctrl-C -----------------------------------------------------------------------------------------------------------

    def _interrupt(self, number: int) -> None:
        self.signal = number
        self._spinner.say("cancelling...")
        if self._connection is None:
            self._patience.cancel()
            return
        self._patience.deadline = anyio.current_time() + END_WITHIN
        self._group.start_soon(self._say_cancel, self._connection)

    async def _say_cancel(self, connection: Connection) -> None:
        try:
            await connection.cancel()
        except (ProtocolError, anyio.BusyResourceError):
            self._patience.cancel()  # gone, or not even asked yet


# -- the closing lines ------------------------------------------------------------------------------------------------------


def closing_line(asking: Asking) -> str:
    """`[Complete - 3.2s, 128 tokens] 41.3 tok/s, first token 0.4s, llama3.2`."""
    tokens = asking.tokens
    counted = f", {tokens} tokens" if tokens is not None else ""
    if asking.signal is not None:
        return f"[Interrupted - {asking.elapsed:.1f}s{counted}]"
    end = asking.end
    assert end is not None, "an answer that is not whole has an error"
    figures = []
    if end.timing.tokens_per_second is not None:
        figures.append(f"{end.timing.tokens_per_second:.1f} tok/s")
    if end.timing.first_token_ms is not None:
        figures.append(f"first token {end.timing.first_token_ms / 1000:.1f}s")
    figures.append(end.model)
    head = f"[Complete - {asking.elapsed:.1f}s{counted}]"
    if end.done_reason == "length":
        head = stopped_line(tokens)
    return f"{head} {', '.join(figures)}"


def stopped_line(tokens: int | None) -> str:
    return "[Stopped at the token limit" + (f" - {tokens} tokens]" if tokens is not None else "]")


def tell_the_end(asking: Asking, *, builtin_notice: bool = True) -> None:
    """What people should know of an answer: notices always, figures only on a terminal."""
    end = asking.end
    for notice in (end.notices or []) if end else []:
        tell(f"[{notice}]")
    if asking.model == BUILTIN and builtin_notice:
        tell(BUILTIN_NOTICE)
    if asking.signal is not None or (end is not None and sys.stderr.isatty()):
        tell(closing_line(asking))
    elif end is not None and end.done_reason == "length":
        tell(stopped_line(asking.tokens))
