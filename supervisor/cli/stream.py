"""What streams need at the terminal: text on its way out, a line that says what is waited for, and Ctrl-C.

Text is written by a worker thread, so a reader that takes its time (`| less`) keeps neither the model server nor Ctrl-C
waiting. Nothing here knows what is being streamed.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO

import anyio
import anyio.abc
import anyio.to_thread
import click

from supervisor.cli import look
from supervisor.cli.context import invocation
from supervisor.cli.exits import Exit, Failure

COALESCE = 0.03  # seconds between two writes: more of them cost more than anybody can see
AGAIN_WITHIN = 2.0  # a second Ctrl-C so soon after the first ends the program at once
SPINNER_AFTER = 0.2  # what is over sooner needs no explanation
FRAME = 0.1
FRAMES, PLAIN_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
SAY_SECONDS_AFTER = 2.0


class Outlet:
    """Text on its way to standard output: the first at once, then what came together at most every 30 ms.

    For a terminal, control bytes are made harmless; a pipe gets the bytes as they are. Without a stream nothing is written.
    `failure` is what writing met (a broken pipe, a full disk); then `run` has cancelled the scope it was given.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.is_terminal = stream is not None and stream.isatty()
        self.failure: OSError | None = None
        self.at_line_start = True
        self._stream = stream
        self._parts: list[str] = []
        self._wake = anyio.Event()
        self._hurry = anyio.Event()
        self._idle = anyio.Event()
        self._idle.set()

    def put(self, text: str, *, is_ours: bool = False) -> None:
        """Takes text; never waits. Ours may hold colours."""
        if self.is_terminal and not is_ours:
            text = look.harmless(text.replace("\r", ""))
        if not text:
            return
        self.at_line_start = text.endswith("\n")
        if self._stream is None:
            return
        self._parts.append(text)
        self._wake.set()
        if self._idle.is_set():
            self._idle = anyio.Event()

    def line(self, text: str) -> None:
        """Takes a whole line of our own, behind whatever line is unfinished."""
        self.end_line()
        self.put(text + "\n")

    def end_line(self) -> None:
        if not self.at_line_start:
            self.put("\n")

    async def drained(self) -> None:
        """Returns when everything that was put is written."""
        self._hurry.set()
        await self._idle.wait()
        self._hurry = anyio.Event()

    async def run(self, scope: anyio.CancelScope) -> None:
        """Writes until cancelled; cancels `scope` when nothing can be written any more."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            text, self._parts = "".join(self._parts), []
            try:
                await anyio.to_thread.run_sync(self._write, text, abandon_on_cancel=True)
            except OSError as error:
                self.failure = error
                scope.cancel()
                return
            if not self._parts:
                self._idle.set()
            with anyio.move_on_after(COALESCE):
                await self._hurry.wait()

    def check(self) -> None:
        """Raises what writing met."""
        if self.failure is not None:
            raise unwritable(self.failure) from None

    def _write(self, text: str) -> None:
        assert self._stream is not None
        data = memoryview(text.encode(self._stream.encoding or "utf-8", "replace"))
        while data:
            data = data[os.write(self._stream.fileno(), data) :]


class Spinner:
    """One line on a terminal's standard error that says what is waited for; on anything else it does not exist."""

    def __init__(self, stream: TextIO = sys.stderr, *, wanted: bool = True) -> None:
        dumb = invocation(click.get_current_context()).environ.get("TERM") == "dumb"
        self._stream = stream
        self._exists = wanted and stream.isatty() and not dumb
        unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
        self._frames = FRAMES if unicode else PLAIN_FRAMES
        self._text = ""
        self._since = anyio.current_time()
        self._shown = 0  # characters on the screen
        self._over = False

    def say(self, text: str) -> None:
        """What is waited for from now on."""
        if text != self._text:
            self._text, self._since = text, anyio.current_time()

    def stop(self) -> None:
        """Erases the line, for good."""
        self._over = True
        self.erase()

    def erase(self) -> None:
        if self._shown:
            self._stream.write("\r" + " " * self._shown + "\r")
            self._stream.flush()
            self._shown = 0

    async def run(self) -> None:
        if not self._exists:
            return
        await anyio.sleep(SPINNER_AFTER)
        at = 0
        while not self._over:
            if self._text:
                self._draw(self._frames[at % len(self._frames)])
            at += 1
            await anyio.sleep(FRAME)

    def _draw(self, frame: str) -> None:
        seconds = anyio.current_time() - self._since
        took = f" ({look.duration(seconds)})" if seconds >= SAY_SECONDS_AFTER else ""
        line = f"{frame} {self._text}{took}"[: look.width(self._stream) - 1]
        self._stream.write("\r" + line.ljust(self._shown))
        self._stream.flush()
        self._shown = len(line)


async def watch_interrupts(
    on_interrupt: Callable[[int], None],
    before_leaving: Callable[[], None],
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Calls `on_interrupt` with the signal on Ctrl-C or TERM; a second one within 2 s ends the program. Never returns.

    A signal that our parent told us to ignore (`nohup`, a shell's background job) stays ignored.
    """
    ours = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]
    if not ours:
        task_status.started()
        await anyio.sleep_forever()
    last = -math.inf
    with anyio.open_signal_receiver(*ours) as signals:
        task_status.started()
        async for number in signals:
            now = anyio.current_time()
            if now - last < AGAIN_WITHIN:
                before_leaving()
                leave(128 + number)
            last = now
            on_interrupt(number)


def unwritable(error: OSError) -> Exception:
    """What to raise where standard output cannot be written: a broken pipe is no failure to tell of."""
    if isinstance(error, BrokenPipeError):
        return error
    return Failure(f"cannot write the answer: {(error.strerror or str(error)).lower()}", Exit.FAILED)


def leave(code: int) -> NoReturn:
    """Ends the program now, whatever is still under way."""
    os._exit(code)


def tell(text: str) -> None:
    """A line for people, on standard error; nobody there is no error."""
    try:
        print(look.harmless(text) if sys.stderr.isatty() else text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass
