"""`chorus service`: the team as a service of systemd. Writes unit files and nothing else; `uninstall` takes them away again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import Any

import click

from supervisor.cli.context import invocation
from supervisor.cli.exits import Exit, Failure


@click.group("service")
def service_command() -> None:
    """The team as a service of systemd."""


def _scope_options(command: Callable[..., Any]) -> Callable[..., Any]:
    user = click.option("--user", "scope", flag_value="user", help="This user's own team.  [default, but for root]")
    system = click.option("--system", "scope", flag_value="system", help="The machine's team, as the user chorus.")
    return user(system(command))


dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")


@service_command.command("install")
@_scope_options
@click.option(
    "--restarter", type=click.Choice(["chorus", "systemd"]), default="chorus", help="Who restarts specialists."
)
@dry_run_option
@click.pass_context
def install_command(ctx: click.Context, scope: str | None, restarter: Any, dry_run: bool) -> int:
    """Write the units, start them and wait until the team can be asked."""
    from supervisor.cli import servicing
    from supervisor.cli.installation import Installation

    installation = Installation(invocation(ctx), _scope(scope), restarter)
    if dry_run:
        plan = installation.plan()
        for path, text in plan.files.items():
            click.echo(f"# {path}\n{text}")
        for path in plan.stale:
            click.echo(f"$ rm {shlex.quote(os.fspath(path))}")
        for words in plan.commands:
            click.echo(f"$ {shlex.join(words)}")
        return Exit.DONE
    servicing.refuse(installation)
    for line in servicing.install(installation):
        click.echo(line, err=True)
    return Exit.DONE


@service_command.command("uninstall")
@_scope_options
@dry_run_option
@click.pass_context
def uninstall_command(ctx: click.Context, scope: str | None, dry_run: bool) -> int:
    """Stop the units and remove them; what the team has written stays."""
    from supervisor.cli import servicing
    from supervisor.cli.installation import Installation

    installation = Installation(invocation(ctx), _scope(scope))
    if dry_run and (found := installation.installed()):
        for words in installation.removal(found):
            click.echo(f"$ {shlex.join(words)}")
        return Exit.DONE
    for line in servicing.uninstall(installation):
        click.echo(line, err=True)
    return Exit.DONE


@service_command.command("show")
@_scope_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def show_command(ctx: click.Context, scope: str | None, as_json: bool) -> int:
    """Show the units, how they are, and whether they are what would be written now. Exit code 3: none are installed."""
    import msgspec

    from supervisor.cli.installation import Installation

    installation = Installation(invocation(ctx), _scope(scope))
    units = installation.show()
    if as_json:
        report = {"version": 1, "scope": installation.scope.value, "restarter": installation.restarter, "units": units}
        click.echo(msgspec.json.encode(report).decode())
    else:
        for one in units:
            click.echo(f"{one.name:<28} {one.state}\n  {one.path}  {one.file}")
    if not any(one.is_installed for one in units):
        raise Failure("the team is not installed as a service", Exit.NOT_RUNNING, remedy="chorus service install")
    return Exit.DONE


def _scope(chosen: str | None) -> Any:
    from supervisor.units import Scope

    return Scope(chosen or ("system" if os.getuid() == 0 else "user"))
