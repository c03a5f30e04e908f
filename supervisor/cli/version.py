"""`chorus version`: ours, the supervisor's, Python's and the system's."""

from __future__ import annotations

import platform
import sys

import click
import msgspec

from protocol import __version__
from supervisor.cli.context import settings_of
from supervisor.cli.exits import Exit, Failure
from supervisor.cli.reach import glance


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def version_command(ctx: click.Context, as_json: bool) -> int:
    """Show the version of this program and of the supervisor that runs."""
    try:
        running = glance(settings_of(ctx), []).supervisor
    except Failure:
        running = None
    theirs = (running.version or "an older version") if running else None
    facts = {"python": platform.python_version(), "platform": platform.platform()}
    if as_json:
        supervisor = {"version": running.version, "pid": running.pid} if running else None
        report = {"version": 1, "chorus": __version__, "supervisor": supervisor, **facts}
        click.echo(msgspec.json.encode(report).decode())
    else:
        where = f"{theirs} (pid {running.pid})" if running else "not running"
        for name, value in {"chorus": __version__, "supervisor": where, **facts}.items():
            click.echo(f"{name:<11} {value}")
    if theirs not in (None, __version__):
        warning = f"warning: the supervisor is {theirs} and this is {__version__}  do: chorus down, then chorus up"
        print(warning, file=sys.stderr)
    return Exit.DONE
