"""`chorus reload`: the supervisor reads the configuration again; what follows is shown, and done."""

from __future__ import annotations

from collections.abc import Iterator

import click
import msgspec

from protocol.control import Plan, Planned, Reload, Result
from supervisor.cli import look
from supervisor.cli.context import invocation
from supervisor.cli.exits import Exit
from supervisor.cli.fleet import json_option, said
from supervisor.config import ConfigError, Loaded, without_files

DONE = {"add": "added", "remove": "removed", "restart": "restarted", "retry": "started"}


@click.command("reload")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@json_option
@click.pass_context
def reload_command(ctx: click.Context, dry_run: bool, as_json: bool) -> int:
    """Read the configuration again; restart those whose own has changed.

    What a specialist is told (persona, model, port, limits …) restarts it, and nobody waits meanwhile; how it is kept
    (restart, grace, memory …) changes without a restart. A configuration with a mistake changes nothing.
    """
    import anyio

    call = invocation(ctx)
    if call.config_file is not None or any(flag is not None for flag in call.flags.values()):
        click.echo("the supervisor reads what it was started with; options of this call are left out", err=True)
    # Our own reading would only say the same mistakes again: the supervisor is what has to understand it.
    result = anyio.run(_ask, without_files(call.environ), Reload(dry_run=dry_run), as_json)
    plan = result.plan or Plan()
    if plan.mistakes:
        if not as_json:
            click.echo("the configuration has mistakes; nothing was changed:", err=True)
        raise ConfigError(plan.mistakes)
    if as_json:
        report = {"version": 1, "dry_run": dry_run, **msgspec.to_builtins(result)}
        click.echo(msgspec.json.encode(report).decode())
    elif dry_run:
        for line in lines(plan):
            click.echo(line)
    else:
        actions = {change.name: change.action for change in plan.changes}
        for outcome in result.changed:
            click.echo(said(outcome, DONE[actions[outcome.name]]), err=True)
        for outcome in result.failed:
            click.echo(f"error: {outcome.name}: {outcome.error}", err=True)
    if not result.failed:
        return Exit.DONE
    return Exit.PARTIAL if result.changed else Exit.FAILED


async def _ask(loaded: Loaded, request: Reload, as_json: bool) -> Result:
    """Asks, and shows the plan as soon as it stands."""
    from supervisor.cli.reach import supervisor

    async with supervisor(loaded) as connection:
        async for answer in connection.ask(request):
            if isinstance(answer, Planned) and not as_json:
                for line in lines(answer.plan):
                    click.echo(line, err=True)
            elif isinstance(answer, Result):
                return answer
    raise AssertionError("a request ends with its result")


def lines(plan: Plan) -> list[str]:
    """The plan for people: those with whom the same is done for the same reason on one line."""
    alike: dict[tuple[str, str], list[str]] = {}
    for change in plan.changes:
        alike.setdefault((change.action, ", ".join(change.why)), []).append(change.name)
    rows = list(_rows(alike))
    rows += [("live", one) for one in plan.live]
    rows += [("later", f"{one} (counts at the next chorus down and chorus up)") for one in plan.later]
    width = max((len(action) for action, _ in rows), default=0)
    return [f"{action.ljust(width)}  {look.harmless(what)}" for action, what in rows]


def _rows(alike: dict[tuple[str, str], list[str]]) -> Iterator[tuple[str, str]]:
    """Who stays as they are comes last: it is the least news."""
    for (action, why), names in sorted(alike.items(), key=lambda one: one[0][0] == "keep"):
        yield action, ", ".join(names) + (f": {why}" if why else "")
