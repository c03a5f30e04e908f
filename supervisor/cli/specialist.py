"""`chorus specialist run NAME`: one specialist in the foreground, with no supervisor; also what a systemd unit runs."""

from __future__ import annotations

import socket
from typing import NoReturn

import click
import msgspec

from protocol.settings import SpecialistConfig
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
    """Run one specialist in the foreground. TERM or Ctrl-C ends it in good order.

    Sockets that systemd hands over are served; otherwise the port is bound.
    """
    from daemon import process
    from daemon.logs import start_logging
    from daemon.notify import Systemd
    from supervisor.cli.foreground import listeners_of

    config = resolve(settings_of(ctx), name)
    config = msgspec.structs.replace(config, port=port or config.port, log_dir=None)
    environ = invocation(ctx).environ
    listeners = listeners_of(config, environ)
    systemd = Systemd(environ)
    if config.command:
        # It knows nothing of sd_notify(3): what a unit must say is said for it. Whether it hangs is seen over the wire.
        status = f"{config.command[0]} on port {config.port}"
        systemd.say("READY=1", "WATCHDOG_USEC=0", f"STATUS={status}")
        _be_the_program(config, config.command, listeners)
    start_logging(config.name, None, environ)
    process.run(config, listeners, systemd)
    return Exit.DONE


def _be_the_program(config: SpecialistConfig, command: list[str], listeners: list[socket.socket]) -> NoReturn:

    from supervisor.fleet import child

    child.execute(config, command, listeners)
    remedy = f"correct specialists.{config.name}.command"
    raise Failure(f"cannot start {config.name}: {command[0]} cannot be run", Exit.FAILED, remedy=remedy)
