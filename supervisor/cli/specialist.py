"""`chorus specialist run NAME`: one specialist in the foreground, with no supervisor."""

from __future__ import annotations

import click
import msgspec

from supervisor.cli.context import invocation, settings_of
from supervisor.cli.exits import Exit, Failure
from supervisor.config import resolve


@click.group("specialist")
def specialist_command() -> None:
    """One specialist by itself."""


@specialist_command.command("run")
@click.argument("name")
@click.option("--port", type=click.IntRange(1, 65535), help="Listen here instead of on its own port.")
@click.pass_context
def run_command(ctx: click.Context, name: str, port: int | None) -> int:
    """Run one specialist in the foreground. TERM or Ctrl-C ends it in good order."""
    from daemon import listen, process
    from daemon.logs import start_logging
    from supervisor.fleet.owner import describe

    config = resolve(settings_of(ctx), name)
    config = msgspec.structs.replace(config, port=port or config.port, log_dir=None)
    try:
        listeners = listen.bind(config.addresses, config.port)
    except OSError:
        fact, remedy = describe(config.port, config.name)
        raise Failure(f"cannot start {config.name}: {fact}", Exit.FAILED, remedy=remedy) from None
    start_logging(config.name, None, invocation(ctx).environ)
    process.run(config, listeners)
    return Exit.DONE
