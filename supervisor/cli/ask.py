"""`chorus ask`: one question, one answer, streamed to standard output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.context import settings_of
from supervisor.cli.exits import Exit, Failure
from supervisor.config import Loaded

if TYPE_CHECKING:
    from protocol.messages import Options
    from supervisor.cli.whom import Colleagues
    from supervisor.team.routing import Choice

# Stands in the words where `--` was: click drops it. No argument can hold a zero byte.
TEXT_FROM_HERE = "\0"


class MarksTheText(click.Command):
    """A command that can tell `ask -- apollo who` from `ask apollo who`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--") + 1
            args = [*args[:at], TEXT_FROM_HERE, *args[at:]]
        return super().parse_args(ctx, args)


@click.command("ask", cls=MarksTheText)
@click.argument("words", nargs=-1, metavar="[NAME] TEXT...", type=click.UNPROCESSED)
@click.option("--session", help="Go on with this conversation.")
@click.option("--model", help="Let this model answer.")
@click.option("--hint", "hints", multiple=True, metavar="TEXT", help="Something to keep in mind; may be repeated.")
@click.option("--think", type=click.Choice(["show", "hide"]), default="hide", help="Show the thinking, on stderr.")
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Keep the answer there.")
@click.option("--no-stdin", is_flag=True, help="Do not look at standard input.")
@click.option("--json", "as_json", is_flag=True, help="The stream's lines, one JSON object each.")
@click.pass_context
def ask_command(
    ctx: click.Context,
    words: tuple[str, ...],
    session: str | None,
    model: str | None,
    hints: tuple[str, ...],
    think: str,
    save: Path | None,
    no_stdin: bool,
    as_json: bool,
) -> int:
    """Ask one specialist. Standard input, if there is any, comes before the text.

    Without a name the orchestration rules say who answers; without rules, whoever is free. A `-` in place of text
    reads standard input whatever it is; after `--` the first word is no name.
    """
    import anyio

    from supervisor.cli.saved import Saved
    from supervisor.cli.whom import colleagues

    loaded = settings_of(ctx)
    name, text, from_stdin = anyio.run(_understood, loaded, words)
    question = question_of(name, text, from_stdin=from_stdin, no_stdin=no_stdin)
    context: dict[str, Any] = {"session_id": session} if session else {}
    if hints:
        context["memory_hints"] = list(hints)

    async def run() -> int:
        from protocol.messages import Chat, Options
        from supervisor.cli.answer import Asking, tell_the_end
        from supervisor.cli.stream import Outlet, tell

        everybody = await colleagues(loaded)
        options = Options(model=model, think=True if think == "show" else None)
        if name:
            place = everybody.to_ask(name)
        else:
            choice = await everybody.choose(question)
            tell(_who_answers(choice))
            if len(choice.chosen) > 1:
                return await _all(everybody, choice, question, context, options, save, as_json=as_json)
            place = everybody.place(choice.chosen[0])
        saved = Saved(save) if save else None
        chat = Chat(content=question, stream=True, context=context or None, options=options)
        asking = Asking(place, chat, Outlet(sys.stdout), as_json=as_json, think=think == "show", saved=saved)
        try:
            await asking.run()
        finally:
            if saved is not None:
                _close(saved, asking)
        tell_the_end(asking)
        if asking.signal is not None:
            return 128 + asking.signal
        if asking.error is not None:
            raise asking.failure(everybody)
        return Exit.DONE

    return anyio.run(run)


def _who_answers(choice: Choice) -> str:
    """What is said before an answer of somebody who was not named."""
    who = " and ".join(filter(None, [", ".join(choice.chosen[:-1]), choice.chosen[-1]]))
    verb = "answers" if len(choice.chosen) == 1 else "answer"
    return f"{who} {verb}" + (f": {choice.why}" if choice.rule is not None else "")


async def _all(
    everybody: Colleagues,
    choice: Choice,
    question: str,
    context: dict[str, Any],
    options: Options,
    save: Path | None,
    *,
    as_json: bool,
) -> int:
    """A rule that has several answer makes a team chat of it."""
    from supervisor.cli.saved import Saved
    from supervisor.cli.teamchat import TeamChat
    from supervisor.team.chat import Member, TeamQuestion
    from supervisor.team.routing import SILENCE

    places = [everybody.place(name) for name in choice.chosen]
    members = [Member(place.name, place.host, place.port) for place in places]
    asked = TeamQuestion(content=question, timeout=SILENCE, context=context or None, options=options)
    saved = Saved(save) if save else None
    view = "json" if as_json else "blocks"
    chat = TeamChat(everybody, members, asked, view=view, over_ssh=False, saved=saved, saved_as_json=False)
    return await chat.run()


def _close(saved: Any, asking: Any) -> None:
    from supervisor.cli.answer import closing_line

    if asking.signal is not None:
        saved.interrupted(closing_line(asking).strip("[]"))
    elif asking.end is None:
        saved.interrupted(f"Incomplete - {asking.error or 'the reader went away'}")
    else:
        saved.finish()


async def _understood(loaded: Loaded, words: tuple[str, ...]) -> tuple[str | None, list[str], bool]:
    """Who is asked, the words of the question, and whether a `-` stood among them. Failure (exit 4) for a near miss."""
    from supervisor.cli.stdin import clean
    from supervisor.cli.whom import colleagues, misspelt, near_miss

    first = clean(words[0]) if words and words[0] not in (TEXT_FROM_HERE, "-") else None
    name = None
    if first is not None:
        everybody = await colleagues(loaded)
        name = everybody.name(first)
        more = any(word not in (TEXT_FROM_HERE, "-") for word in words[1:])
        if name is None and more and (near := near_miss(first, everybody.known)):
            raise misspelt(first, near)
    text, from_stdin = split_words(words[1:] if name else words)
    return name, text, from_stdin


def split_words(words: tuple[str, ...]) -> tuple[list[str], bool]:
    """The words of the question, and whether a `-` before any `--` asks for standard input."""
    from supervisor.cli.stdin import clean

    marked = words.index(TEXT_FROM_HERE) if TEXT_FROM_HERE in words else len(words)
    said = [clean(word) for word in words[:marked]]
    return [*(word for word in said if word != "-"), *map(clean, words[marked + 1 :])], "-" in said


def question_of(
    name: str | None, text: list[str], *, from_stdin: bool, no_stdin: bool, example: str = "chorus ask apollo"
) -> str:
    """Standard input and the text as one question; Failure (exit 2) where there is neither."""
    from supervisor.cli.stdin import in_front, read_stdin

    typed = " ".join(text)
    said = "" if no_stdin else read_stdin(always=from_stdin, have_text=bool(typed.strip()))
    question = in_front(said, typed)
    if not question:
        remedy = f'{example} "what next?"   or   ... | {example}'
        what = f"nothing to ask {name}" if name else "nothing to ask"
        raise Failure(what, Exit.USAGE, remedy=remedy, code="bad_request")
    return question
