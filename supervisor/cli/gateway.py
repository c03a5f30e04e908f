"""`chorus gateway run`: the gateway in the foreground, with no supervisor; also what a systemd unit runs."""

from __future__ import annotations

import click
from msgspec.structs import replace

from supervisor.cli.context import invocation, settings_of
from supervisor.cli.exits import Exit


@click.group("gateway")
def gateway_command() -> None:
    """The gateway by itself."""


@gateway_command.command("run")
@click.option("--port", type=click.IntRange(1, 65535), help="Listen here instead of on its own ports.")
@click.pass_context
def run_command(ctx: click.Context, port: int | None) -> int:
    """Run the gateway in the foreground. TERM or Ctrl-C ends it in good order.

    Sockets that systemd hands over are served; otherwise its ports are bound.
    """
    from daemon.logs import start_logging
    from daemon.notify import Systemd
    from supervisor import roster
    from supervisor.cli.foreground import listeners_of
    from supervisor.fleet import descriptors
    from supervisor.gateway import process

    config = replace(roster.gateway(settings_of(ctx)), log_dir=None)
    if port is not None:
        config = config.elsewhere(
            [(address, port) for address in dict.fromkeys(address for address, _ in config.places)]
        )
    environ = invocation(ctx).environ
    listeners = listeners_of(config, environ)
    descriptors.make_room()
    start_logging(config.name, None, environ)
    process.run(config, listeners, Systemd(environ))
    return Exit.DONE
