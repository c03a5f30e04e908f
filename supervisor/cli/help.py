"""`chorus help [TOPIC]`: what a user may have to look up, offline."""

from __future__ import annotations

from importlib.resources import files

import click

from supervisor.cli.exits import Exit, Failure

# topic: what it is about, in the order of the list
TOPICS = {
    "nc": "talking to a specialist with nc, in plain text",
    "wire": "the messages of the wire protocol, and its error codes",
    "events": "what an event says, and where events are kept",
    "exit-codes": "what the exit code of a command says",
    "environment": "the variables that are read",
    "configuration": "the configuration file, every key with its default",
    "files": "what is stored where, and how it is deleted",
}


@click.command("help")
@click.argument("topic", required=False)
@click.pass_context
def help_command(ctx: click.Context, topic: str | None) -> int:
    """Explain a topic; without one, list them."""
    if topic is None:
        for name, about in TOPICS.items():
            click.echo(f"{name.ljust(max(map(len, TOPICS)))}  {about}")
        click.echo("\nchorus help TOPIC explains one; chorus COMMAND --help explains a command", err=True)
        return Exit.DONE
    if topic in TOPICS:
        click.echo(text_of(topic), nl=False)
        return Exit.DONE
    group = ctx.parent.command if ctx.parent else None
    command = group.get_command(ctx, topic) if isinstance(group, click.Group) else None
    if command is None:
        raise Failure(f"there is no topic {topic!r}", Exit.USAGE, remedy="chorus help", code="not_found")
    with click.Context(command, parent=ctx.parent, info_name=topic) as inner:
        click.echo(command.get_help(inner))
    return Exit.DONE


def text_of(topic: str) -> str:
    """The text of a topic, with its final newline."""
    here = files("supervisor.cli")
    if topic == "configuration":
        return here.joinpath("example.toml").read_text(encoding="utf-8")
    return here.joinpath("topics", f"{topic}.txt").read_text(encoding="utf-8")
