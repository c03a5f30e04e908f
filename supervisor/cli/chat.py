"""`chorus chat`: a conversation with one specialist at the terminal, or a message a line from a pipe.

The specialist remembers; here is only the session's name, so the conversation goes on after either of us was restarted.
"""

from __future__ import annotations

import re
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import click
from msgspec import Struct

from protocol.messages import History, HistoryResponse, Options, Reset, ResetResponse, StoredTurn, Turn
from supervisor.cli import look
from supervisor.cli.context import settings_of
from supervisor.cli.exits import Exit, Failure
from supervisor.cli.stream import tell
from supervisor.config import Loaded

LONGEST_SESSION = 10_000  # turns shown by /history, the wire's own limit
HELP = """\
Write a message and press Enter; a paste is one message. Ctrl-C stops an answer, Ctrl-D ends the conversation.
/retry        ask the last message again, as if it had not been answered
/model NAME   let this model answer from now on
/history      what was said in this conversation
/save FILE    write it to a file
/reset        forget it
/exit         leave"""


class Line(Struct, frozen=True):
    """One thing the user said: a message, or a command with what follows it."""

    text: str
    command: str | None = None


@click.command("chat")
@click.argument("name")
@click.option("--session", help="Go on with this conversation.")
@click.option("--model", help="Let this model answer.")
@click.pass_context
def chat_command(ctx: click.Context, name: str, session: str | None, model: str | None) -> int:
    """Talk to one specialist."""
    import anyio

    from supervisor.cli.whom import colleagues

    loaded = settings_of(ctx)
    everybody = anyio.run(colleagues, loaded)
    talk = Talk(loaded, everybody.named(name), session, model)
    return talk.at_the_terminal() if sys.stdin.isatty() else talk.from_a_pipe()


class Talk:
    """One conversation. `turns` is what was said, where a retry made it differ from what the specialist remembers."""

    def __init__(self, loaded: Loaded, name: str, session: str | None, model: str | None) -> None:
        self.loaded = loaded
        self.name = name
        self.session = session or secrets.token_hex(8)
        self.options = Options(model=model)
        self.turns: list[Turn] | None = None
        self.last: str | None = None
        self.code: int = Exit.DONE  # of the last failure
        self._noticed = False  # that no model answers: said once

    def at_the_terminal(self) -> int:
        tell(f"{self.name}: /help for the commands, Ctrl-D to leave")
        for line in _typed(f"{self.name}> "):
            if line.command == "exit":
                break
            try:
                self._take(line)
            except KeyboardInterrupt:  # just before or behind an answer, which hears it by itself
                tell("")
        tell(f"to go on: chorus chat {self.name} --session {self.session}")
        return Exit.DONE

    def from_a_pipe(self) -> int:
        """Each line is a message; the exit code is that of the last failure."""
        for raw in sys.stdin:
            if not (line := understood(raw.rstrip("\r\n"))):
                continue
            if line.command == "exit":
                break
            if self._take(line) >= Exit.TIMEOUT:  # interrupted: whoever sent the signal meant all of it
                return self.code
        return self.code

    def _take(self, line: Line) -> int:
        """Answers, or obeys; a failure is told, and the conversation goes on."""
        try:
            code = self._obey(line.command, line.text) if line.command else self._say(line.text)
        except Failure as failure:
            tell(f"error: {failure.sentence}")
            if failure.remedy:
                tell(f"  do: {failure.remedy}")
            code = failure.exit_code
        self.code = code or self.code
        return code

    # -- messages -------------------------------------------------------------------------------------------------------

    def _say(self, text: str) -> int:
        import anyio

        self.last = text
        return anyio.run(self._answer, text)

    async def _answer(self, text: str) -> int:
        from protocol.messages import Chat
        from supervisor.cli.answer import Asking, tell_the_end
        from supervisor.cli.stream import Outlet
        from supervisor.cli.whom import colleagues

        everybody = await colleagues(self.loaded)  # each time: it may have moved
        context = {"session_id": self.session}
        chat = Chat(content=text, stream=True, context=context, history=self.turns, options=self.options)
        asking = Asking(everybody.to_ask(self.name), chat, Outlet(sys.stdout))
        await asking.run()
        tell_the_end(asking, builtin_notice=not self._noticed)
        self._noticed = True
        if self.turns is not None and asking.content:
            self.turns = [*self.turns, Turn("user", text), Turn("assistant", asking.content)]
        if asking.signal is not None:
            return 128 + asking.signal
        if asking.error is not None:
            raise asking.failure(everybody)
        return Exit.DONE

    # -- commands -------------------------------------------------------------------------------------------------------

    def _obey(self, command: str, argument: str) -> int:
        match command:
            case "retry":
                return self._retry()
            case "model":
                self.options = Options(model=argument or None)
                tell(
                    f"{argument} answers from now on" if argument else "the specialist's own model answers from now on"
                )
            case "history":
                turns = self._stored()
                click.echo(look.harmless(as_text(self.name, turns)) if turns else "nothing was said yet")
            case "save":
                self._save(argument)
            case "reset":
                tell(f"forgot {self._reset()} turns")
            case "help":
                tell(HELP)
            case _:
                raise Failure(f"there is no /{command}", Exit.USAGE, remedy="/help")
        return Exit.DONE

    def _retry(self) -> int:
        if self.last is None:
            raise Failure("there is nothing to ask again yet", Exit.USAGE)
        if self.turns is None:
            self.turns = [Turn(_role(turn), turn.content) for turn in self._stored()]
        if len(self.turns) >= 2 and self.turns[-2].content == self.last:
            self.turns = self.turns[:-2]
        return self._say(self.last)

    def _save(self, file: str) -> None:
        if not file:
            raise Failure("/save needs the name of a file", Exit.USAGE)
        turns = self._stored()
        path = Path(file).expanduser()
        try:
            path.write_text(as_text(self.name, turns) + "\n", "utf-8", "replace")
        except OSError as error:
            raise Failure(f"cannot write {path}: {(error.strerror or str(error)).lower()}", Exit.FAILED) from None
        tell(f"{len(turns)} turns saved to {path}")

    def _reset(self) -> int:
        import anyio

        from supervisor.cli.wire import call

        self.turns = self.last = None
        reply = anyio.run(call, self.loaded, self.name, Reset(session_id=self.session))
        assert isinstance(reply, ResetResponse)
        return reply.removed

    def _stored(self) -> list[StoredTurn]:
        import anyio

        from supervisor.cli.wire import call

        request = History(session_id=self.session, limit=LONGEST_SESSION)
        reply = anyio.run(call, self.loaded, self.name, request)
        assert isinstance(reply, HistoryResponse)
        return reply.conversations


def understood(text: str) -> Line | None:
    """What a line of input means; None for one that says nothing. Only `/word` at the start of a single line is a command."""
    if not text.strip():
        return None
    found = re.fullmatch(r"/([a-z]+)(?: +(.*))?", text.strip())
    if found is None:
        return Line(text)
    command = {"quit": "exit", "bye": "exit"}.get(found[1], found[1])
    return Line((found[2] or "").strip(), command)


def as_text(name: str, turns: list[StoredTurn]) -> str:
    """A conversation to read."""

    def one(turn: StoredTurn) -> str:
        who = "you" if turn.role == "user" else name
        return f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(turn.timestamp))} {who}:\n{turn.content}"

    return "\n\n".join(one(turn) for turn in turns)


def _role(turn: StoredTurn) -> Literal["user", "assistant"]:
    return "user" if turn.role == "user" else "assistant"


def _typed(prompt: str) -> Iterator[Line]:
    """What is typed, until Ctrl-D. Ctrl-C drops the line; on an empty one it says how to leave."""
    import readline

    # GNU readline then takes a paste as one line, whatever newlines are in it, and switches the terminal's mode itself.
    readline.parse_and_bind("set enable-bracketed-paste on")
    while True:
        try:
            text = _line(prompt)
        except EOFError:
            tell("")
            return
        except KeyboardInterrupt:
            with _deaf():
                tell("" if readline.get_line_buffer() else "\n(Ctrl-D or /exit leaves)")
            continue
        if line := understood(text.rstrip("\n")):
            yield line


def _line(prompt: str) -> str:
    """One line; EOFError at the end."""
    if sys.stdout.isatty():
        return input(prompt)
    sys.stderr.write(prompt)  # input() would write it into the answers
    sys.stderr.flush()
    text = sys.stdin.readline()
    if not text:
        raise EOFError
    return text


@contextmanager
def _deaf() -> Iterator[None]:
    """A second Ctrl-C while the first is being answered says nothing new."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
