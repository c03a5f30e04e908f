"""`chorus ask`: one question, one answer, streamed to standard output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from supervisor.cli.context import settings_of
from supervisor.cli.exits import Exit, Failure
from supervisor.config import Loaded

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

    Without a name whoever is free answers. A `-` in place of text reads standard input whatever it is; after `--`
    the first word is no name.
    """
    import anyio

    from supervisor.cli.saved import Saved
    from supervisor.cli.whom import colleagues

    loaded = settings_of(ctx)
    name, text, from_stdin = anyio.run(_understood, loaded, words)
    question = _question(name, text, from_stdin=from_stdin, no_stdin=no_stdin)
    saved = Saved(save) if save else None
    context: dict[str, Any] = {"session_id": session} if session else {}
    if hints:
        context["memory_hints"] = list(hints)

    async def run() -> int:
        from protocol.messages import Chat, Options
        from supervisor.cli.answer import Asking, tell_the_end
        from supervisor.cli.stream import Outlet, tell

        everybody = await colleagues(loaded)
        place = everybody.place(name) if name else await everybody.choose()
        if not name:
            tell(f"{place.name} answers")
        if place.state == "stopped":
            raise everybody.unreachable(place.name)
        options = Options(model=model, think=True if think == "show" else None)
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

    marked = words.index(TEXT_FROM_HERE) if TEXT_FROM_HERE in words else None
    literal = [] if marked is None else [clean(word) for word in words[marked + 1 :]]
    said = [clean(word) for word in words[:marked]]
    from_stdin = "-" in said
    name = None
    if said and said[0] != "-":
        everybody = await colleagues(loaded)
        name = everybody.name(said[0])
        if name is not None:
            said = said[1:]
        elif (len(said) > 1 or literal) and (near := near_miss(said[0], everybody.known)):
            raise misspelt(said[0], near)
    return name, [*(word for word in said if word != "-"), *literal], from_stdin


def _question(name: str | None, text: list[str], *, from_stdin: bool, no_stdin: bool) -> str:
    from supervisor.cli.stdin import in_front, read_stdin

    typed = " ".join(text)
    said = "" if no_stdin else read_stdin(always=from_stdin, have_text=bool(typed.strip()))
    question = in_front(said, typed)
    if not question:
        whom = name or "whom"
        remedy = f'chorus ask {name or "apollo"} "what next?"   or   ... | chorus ask {name or "apollo"}'
        what = f"nothing to ask {whom}" if name else "nothing to ask"
        raise Failure(what, Exit.USAGE, remedy=remedy, code="bad_request")
    return question
