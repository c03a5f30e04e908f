"""`chorus completion SHELL`: a script that completes without starting chorus.

The commands and options are written into it; the specialists too, and those that the registry's file has at the moment of
completing come first. So Tab costs a file read by the shell itself.
"""

from __future__ import annotations

import click

from supervisor.cli.context import settings_of
from supervisor.cli.exits import Exit
from supervisor.config import ConfigError

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> int:
    """Print a completion script; load it with one of these:

    \b
    bash   source <(chorus completion bash)        in ~/.bashrc
    zsh    source <(chorus completion zsh)         in ~/.zshrc, after compinit
    fish   chorus completion fish > ~/.config/fish/completions/chorus.fish
    """
    from protocol import names
    from supervisor.cli.scripts import script
    from supervisor.cli.words import places

    try:
        roster = settings_of(ctx).settings.roster
    except ConfigError:
        roster = list(names.ROSTER)  # a mistake in a file must not break every new shell
    root = ctx.find_root()
    click.echo(script(shell, list(places(root.command, root)), roster), nl=False)
    return Exit.DONE
