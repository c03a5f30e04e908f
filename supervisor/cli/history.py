"""`chorus history`: what was said, asked of the specialists themselves: they keep it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import click
import msgspec
from msgspec import Struct

from protocol.messages import History, HistoryResponse, Reset, ResetResponse, StoredTurn
from supervisor.cli import look
from supervisor.cli.context import settings_of
from supervisor.cli.exits import Exit, Failure, not_running
from supervisor.cli.stream import tell
from supervisor.config import Loaded

PAGE = 10_000  # turns asked for at once: the wire's limit
VERBS = ("search", "show", "rm", "export")


class Exchange(Struct, frozen=True, omit_defaults=True):
    """A question and its answer. `number` counts from the oldest of those that were selected."""

    number: int
    name: str
    session_id: str
    at: float
    question: str
    answer: str
    model: str | None = None


class Book(Struct, frozen=True):
    """What was said, oldest first, and who could not be asked."""

    exchanges: list[Exchange]
    asked: list[str]
    missing: list[str]


@click.command("history")
@click.argument("words", nargs=-1, metavar="[NAME] [search WORDS | show N | rm | export]", type=click.UNPROCESSED)
@click.option("-n", "count", type=click.IntRange(min=1), default=20, show_default=True, help="List so many turns.")
@click.option("--session", help="Only this conversation.")
@click.option("--all", "everything", is_flag=True, help="rm: all conversations.")
@click.option("--yes", is_flag=True, help="rm: do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def history_command(
    ctx: click.Context,
    words: tuple[str, ...],
    count: int,
    session: str | None,
    everything: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Show, search, export or delete what was said, newest last.

    Numbers count from the oldest turn; with a NAME, from its oldest.
    """
    import anyio

    loaded = settings_of(ctx)
    name, verb, rest = understood(words)
    if verb == "rm":
        if rest and name is None:  # `rm apollo --all`
            name, rest = rest[0], rest[1:]
        return _remove(loaded, name, session, everything=everything, yes=yes, extra=rest)
    book = anyio.run(read_book, loaded, name, session)
    for missing in book.missing:
        tell(f"{missing} is not running: what it remembers is not here")
    if verb == "show":
        _show([_numbered(book, rest)], as_json)
    elif verb == "search":
        _list(_matching(book, rest), as_json)
    elif verb == "export":
        _show(book.exchanges, as_json)
    else:
        _list(book.exchanges[-count:], as_json)
    return Exit.DONE


def understood(words: Sequence[str]) -> tuple[str | None, str | None, list[str]]:
    """The name, the verb and what follows it; each may be missing."""
    rest = list(words)
    name = rest.pop(0) if rest and rest[0] not in VERBS else None
    verb = rest.pop(0) if rest else None
    if verb is not None and verb not in VERBS:
        raise Failure(f'there is no "history {verb}"', Exit.USAGE, remedy=f"one of {', '.join(VERBS)}")
    return name, verb, rest


# -- reading ------------------------------------------------------------------------------------------------------------


async def read_book(loaded: Loaded, name: str | None, session: str | None) -> Book:
    """Everything that is remembered, by everybody or one. Failure where nobody can be asked."""
    import anyio

    from supervisor.cli.whom import Place
    from supervisor.cli.wire import call_at

    everybody, places, missing = await _whom(loaded, name)
    exchanges: list[Exchange] = []
    asked: list[str] = []

    async def read(place: Place) -> None:
        turns: list[StoredTurn] = []
        before: float | None = None
        while True:
            request = History(session_id=session, limit=PAGE, before=before)
            try:
                [reply] = await call_at(everybody, place, request)
            except Failure:
                if name is not None:
                    raise
                missing.append(place.name)
                return
            assert isinstance(reply, HistoryResponse)
            turns = [*reply.conversations, *turns]
            if len(reply.conversations) < PAGE:
                break
            before = reply.conversations[0].timestamp
        asked.append(place.name)
        exchanges.extend(paired(place.name, turns))

    if len(places) == 1:
        await read(places[0])  # outside a group: its failure stays what it is
    else:
        async with anyio.create_task_group() as group:
            for place in places:
                group.start_soon(read, place)
    exchanges.sort(key=lambda one: one.at)
    numbered = [msgspec.structs.replace(one, number=at) for at, one in enumerate(exchanges, 1)]
    return Book(numbered, asked, missing)


async def _whom(loaded: Loaded, name: str | None) -> tuple[Any, list[Any], list[str]]:
    """Everybody, the places to ask, and the names of those that are not there."""
    from supervisor.cli.whom import colleagues
    from supervisor.team.routing import ANSWERING

    everybody = await colleagues(loaded)
    if name is not None:
        return everybody, [everybody.to_ask(everybody.named(name))], []
    if everybody.report is None:
        alone = await everybody.alone(everybody.roster)
        if not alone:
            raise not_running()
        return everybody, alone, []
    up = [*ANSWERING, "draining", "starting"]
    there = [one.name for one in everybody.report.specialists if one.state in up]
    if not there:
        raise not_running("no specialist is running")
    return everybody, [everybody.place(one) for one in there], [one for one in everybody.roster if one not in there]


def paired(name: str, turns: Sequence[StoredTurn]) -> list[Exchange]:
    """Questions with their answers. They are stored in pairs, and told by time: those of other sessions lie between."""
    found = []
    questions: dict[str, StoredTurn] = {}  # by session, those without an answer so far
    for turn in turns:
        if turn.role == "user":
            questions[turn.session_id] = turn
        elif question := questions.pop(turn.session_id, None):
            asked = question.timestamp
            found.append(Exchange(0, name, turn.session_id, asked, question.content, turn.content, turn.model))
    return found


def _matching(book: Book, words: list[str]) -> list[Exchange]:
    wanted = " ".join(words).casefold()
    if not wanted:
        raise Failure("search needs words to look for", Exit.USAGE)
    return [one for one in book.exchanges if wanted in f"{one.question}\n{one.answer}".casefold()]


def _numbered(book: Book, words: list[str]) -> Exchange:
    if len(words) != 1 or not words[0].isdecimal():
        raise Failure("show needs the number of a turn", Exit.USAGE, remedy="chorus history")
    number = int(words[0])
    if not 1 <= number <= len(book.exchanges):
        raise Failure(f"there is no turn {number}: there are {len(book.exchanges)}", Exit.FAILED, code="not_found")
    return book.exchanges[number - 1]


# -- showing ------------------------------------------------------------------------------------------------------------


def _list(exchanges: list[Exchange], as_json: bool) -> None:
    if as_json:
        _json(exchanges)
        return
    if not exchanges:
        tell("nothing")
    names = max((len(one.name) for one in exchanges), default=0)
    digits = max((len(str(one.number)) for one in exchanges), default=0)
    room = look.width()
    for one in exchanges:
        head = f"{one.number:{digits}}  {one.name:{names}}  {_when(one.at)}  "
        click.echo(_cut(head + "you: " + _flat(one.question), room))
        click.echo(_cut(" " * len(head) + f"{one.name}: " + _flat(one.answer), room))


def _show(exchanges: list[Exchange], as_json: bool) -> None:
    if as_json:
        _json(exchanges)
        return
    for at, one in enumerate(exchanges):
        model = f"  {one.model}" if one.model else ""
        head = f"== {one.number}  {one.name}  {_when(one.at)}  session {one.session_id}{model} =="
        text = f"{head}\nyou: {one.question}\n\n{one.name}: {one.answer}"
        click.echo(("\n" if at else "") + (look.harmless(text) if sys.stdout.isatty() else text))


def _json(exchanges: list[Exchange]) -> None:
    click.echo(msgspec.json.encode({"version": 1, "history": exchanges}).decode())


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _flat(text: str) -> str:
    """On one line, and nothing that a terminal obeys: a list is for people, wherever it goes."""
    return look.harmless(" ".join(text.split()))


def _cut(line: str, room: int) -> str:
    return line if len(line) <= room else line[: room - 1] + "…"


# -- deleting ------------------------------------------------------------------------------------------------------------


def _remove(
    loaded: Loaded, name: str | None, session: str | None, *, everything: bool, yes: bool, extra: list[str]
) -> int:
    import anyio

    if extra or (session is None) == (not everything):
        remedy = "chorus history rm --session ID   or   chorus history rm [NAME] --all"
        raise Failure("rm needs either --session ID or --all", Exit.USAGE, remedy=remedy)
    book = anyio.run(read_book, loaded, name, session)
    whose = "everybody" if name is None else book.asked[0]
    turns = f"{len(book.exchanges)} turn{'' if len(book.exchanges) == 1 else 's'} of {whose}"
    if not book.exchanges:
        tell(f"nothing to delete: {turns}")
        return Exit.PARTIAL if book.missing else Exit.DONE
    if not yes and not sys.stdin.isatty():
        raise Failure(f"this deletes {turns}, and there is nobody here to ask", Exit.USAGE, remedy="say --yes")
    if not yes and not click.confirm(f"delete {turns}?", err=True):
        return Exit.FAILED
    removed, missing = anyio.run(_reset, loaded, book.exchanges)
    tell(f"deleted {removed} of {turns}")
    missing = [*book.missing, *missing]
    for one in missing:
        tell(f"{one} could not be reached: it still remembers")
    return Exit.PARTIAL if missing else Exit.DONE


async def _reset(loaded: Loaded, exchanges: list[Exchange]) -> tuple[int, list[str]]:
    """Has the sessions of these turns forgotten; returns how many turns went, and who failed."""
    from supervisor.cli.whom import colleagues
    from supervisor.cli.wire import call_at

    everybody = await colleagues(loaded)
    removed = 0
    missing = []
    for name in dict.fromkeys(one.name for one in exchanges):
        sessions = dict.fromkeys(one.session_id for one in exchanges if one.name == name)
        try:
            replies = await call_at(everybody, everybody.place(name), *(Reset(session_id=one) for one in sessions))
        except Failure as failure:
            tell(f"error: {failure.sentence}")
            missing.append(name)
            continue
        removed += sum(reply.removed for reply in replies if isinstance(reply, ResetResponse))
    return removed // 2, missing  # a question and an answer are stored as two
