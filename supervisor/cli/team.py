"""`chorus team`: everybody at once, live."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import look
from supervisor.cli.ask import MarksTheText, question_of, split_words
from supervisor.cli.context import invocation, settings_of
from supervisor.cli.exits import Exit, Failure, not_running
from supervisor.config import Loaded

if TYPE_CHECKING:
    from supervisor.cli.whom import Colleagues
    from supervisor.team.chat import Member

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


@click.command("team", cls=MarksTheText)
@click.argument("words", nargs=-1, metavar="TEXT...", type=click.UNPROCESSED)
@click.option("--only", metavar="A,B", help="Ask these only.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,  # a local model may read a long prompt, or serve somebody else, for longer than a web client waits
    show_default=True,
    help="Seconds one of them may be silent.",
)
@click.option("--deadline", type=click.FloatRange(min=0, min_open=True), help="Seconds for all of it.")
@click.option("--synthesize", metavar="NAME", help="Let this one make one answer of all of them, afterwards.")
@click.option("--view", type=click.Choice(["auto", "columns", "lines", "blocks"]), default="auto")
@click.option(
    "--save", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Keep it; .jsonl: events."
)
@click.option("--no-stdin", is_flag=True, help="Do not look at standard input.")
@click.option("--json", "as_json", is_flag=True, help="Every event as a line; the last one is `finished`.")
@click.pass_context
def team_command(
    ctx: click.Context,
    words: tuple[str, ...],
    only: str | None,
    timeout: float,
    deadline: float | None,
    synthesize: str | None,
    view: str,
    save: Path | None,
    no_stdin: bool,
    as_json: bool,
) -> int:
    """Ask everybody who is there at the same moment."""
    import anyio

    from supervisor.cli.saved import Saved
    from supervisor.cli.teamchat import TeamChat
    from supervisor.team.chat import Moderation, TeamQuestion

    loaded = settings_of(ctx)
    chosen = [word.strip() for word in only.split(",") if word.strip()] if only is not None else None
    anyio.run(_check, loaded, chosen, synthesize)  # before anybody types a long question into nowhere
    text, from_stdin = split_words(words)
    content = question_of(None, text, from_stdin=from_stdin, no_stdin=no_stdin, example="chorus team")

    async def run() -> int:
        from supervisor.cli.whom import colleagues

        everybody = await colleagues(loaded)
        moderator = everybody.named(synthesize) if synthesize else None
        there = await _there(everybody, [*everybody.roster, *([moderator] if moderator else [])])
        members = _members(everybody, chosen, there)
        question = TeamQuestion(
            content=content,
            timeout=timeout,
            deadline=deadline,
            moderation=Moderation("synthesis", _member(everybody, moderator, there)) if moderator else None,
        )
        chat = TeamChat(
            everybody,
            members,
            question,
            view="json" if as_json else _view(view, len(members)),
            over_ssh="SSH_CONNECTION" in invocation(ctx).environ,
            saved=Saved(save) if save else None,
            saved_as_json=save is not None and save.suffix in JSON_SUFFIXES,
        )
        return await chat.run()

    return anyio.run(run)


async def _check(loaded: Loaded, only: list[str] | None, synthesize: str | None) -> None:
    """Failure (exit 4) for a name that nobody has."""
    from supervisor.cli.whom import colleagues

    if only is None and synthesize is None:
        return
    if only == []:
        raise Failure("--only names nobody", Exit.USAGE)
    everybody = await colleagues(loaded)
    for name in [*(only or []), *([synthesize] if synthesize else [])]:
        everybody.named(name)


async def _there(everybody: Colleagues, names: list[str]) -> set[str]:
    """Who of these answers, as the supervisor says, or as their ports do."""
    from supervisor.team.routing import ANSWERING

    if everybody.report is not None:
        return {one.name for one in everybody.report.specialists if one.state in ANSWERING}
    return {place.name for place in await everybody.alone(names)}


def _members(everybody: Colleagues, only: list[str] | None, there: set[str]) -> list[Member]:
    """Whom to ask, and with their trouble those that should be there and are not. Failure where nobody is there at all."""

    def is_missed(name: str) -> bool:
        status = everybody.status(name)
        return only is not None or (status is not None and status.wanted == "up")

    names = dict.fromkeys(everybody.named(name) for name in only) if only is not None else everybody.roster
    members = [_member(everybody, name, there) for name in names if name in there or is_missed(name)]
    if not members:
        raise not_running("no specialist is running")
    if everybody.report is None:
        from supervisor.cli.stream import tell

        if all(member.trouble for member in members):
            raise not_running()
        tell("the supervisor is not running; asking those who answer on their ports  do: chorus up")
    return sorted(members, key=lambda member: everybody.place(member.name).position)


def _member(everybody: Colleagues, name: str, there: set[str]) -> Member:
    from supervisor.team.chat import Member
    from supervisor.team.events import Trouble

    place = everybody.place(name)
    if name in there:
        return Member(name, place.host, place.port)
    failure = everybody.unreachable(name)
    sentence = failure.sentence + (f"  do: {failure.remedy}" if failure.remedy else "")
    return Member(name, place.host, place.port, trouble=Trouble("unavailable", sentence))


def _view(asked_for: str, count: int) -> str:
    """The view for this screen: columns where they can be read, else lines; whole answers where nobody looks."""
    from supervisor.cli.views import columns_fit

    if asked_for != "auto" and (asked_for != "columns" or sys.stdout.isatty()):
        return asked_for
    if not sys.stdout.isatty() or asked_for == "columns":
        return "blocks"
    size = shutil.get_terminal_size()
    dumb = not look.wants_colour(sys.stdout) and _is_dumb()
    return "columns" if columns_fit(count, size.columns, size.lines) and not dumb else "lines"


def _is_dumb() -> bool:
    environ: Any = invocation(click.get_current_context()).environ
    return bool(environ.get("TERM") in (None, "", "dumb"))
