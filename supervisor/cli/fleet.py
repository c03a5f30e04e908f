"""`chorus start`, `stop`, `restart`, `drain`: some of the team, by name, alias or glob."""

from __future__ import annotations

import click
import msgspec

from protocol.control import Drain, Named, Outcome, Restart, Result, Start, Stop
from supervisor.cli.context import settings_of
from supervisor.cli.exits import Exit
from supervisor.config import Loaded

names_argument = click.argument("names", nargs=-1, required=True, metavar="NAME...|all")
no_wait_option = click.option("--no-wait", is_flag=True, help="Do not wait until it is done.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@click.command("start")
@names_argument
@no_wait_option
@json_option
@click.pass_context
def start_command(ctx: click.Context, names: tuple[str, ...], no_wait: bool, as_json: bool) -> int:
    """Start specialists; those that run stay as they are."""
    return _run(ctx, Start(names=list(names), wait=not no_wait), "started", as_json)


@click.command("stop")
@names_argument
@no_wait_option
@click.option("--grace", type=float, help="Seconds for answers that are under way.")
@json_option
@click.pass_context
def stop_command(ctx: click.Context, names: tuple[str, ...], no_wait: bool, grace: float | None, as_json: bool) -> int:
    """Stop specialists and close their ports."""
    return _run(ctx, Stop(names=list(names), wait=not no_wait, grace=grace), "stopped", as_json)


@click.command("restart")
@names_argument
@no_wait_option
@click.option("--rolling", is_flag=True, help="One after the other.")
@json_option
@click.pass_context
def restart_command(ctx: click.Context, names: tuple[str, ...], no_wait: bool, rolling: bool, as_json: bool) -> int:
    """Replace specialists by new processes; nobody who connects is refused."""
    return _run(ctx, Restart(names=list(names), wait=not no_wait, rolling=rolling), "restarted", as_json)


@click.command("drain")
@names_argument
@no_wait_option
@json_option
@click.pass_context
def drain_command(ctx: click.Context, names: tuple[str, ...], no_wait: bool, as_json: bool) -> int:
    """Let specialists finish and refuse what is new, until start or stop."""
    return _run(ctx, Drain(names=list(names), wait=not no_wait), "draining", as_json)


def _run(ctx: click.Context, request: Named, done: str, as_json: bool) -> int:
    import anyio

    result = anyio.run(_ask, settings_of(ctx), request)
    if as_json:
        click.echo(msgspec.json.encode({"version": 1, **msgspec.to_builtins(result)}).decode())
    else:
        for outcome in result.changed:
            click.echo(said(outcome, done), err=True)
        for outcome in result.failed:
            click.echo(f"error: {outcome.name}: {outcome.error}", err=True)
    if not result.failed:
        return Exit.DONE
    return Exit.PARTIAL if result.changed else Exit.FAILED


async def _ask(loaded: Loaded, request: Named) -> Result:
    from supervisor.cli.reach import supervisor

    async with supervisor(loaded) as connection:
        return await connection.call(request)  # type: ignore[arg-type]


def said(outcome: Outcome, done: str) -> str:
    """What became of one specialist, for people."""
    pids = ""
    if outcome.new_pid and outcome.old_pid and outcome.new_pid != outcome.old_pid:
        pids = f", pid {outcome.old_pid} -> {outcome.new_pid}"
    elif outcome.new_pid or outcome.old_pid:
        pids = f", pid {outcome.new_pid or outcome.old_pid}"
    took = f", {outcome.down_ms:.0f} ms" if outcome.down_ms is not None else ""
    return f"{outcome.name} {done}{pids}{took}"
