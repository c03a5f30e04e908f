"""What may be typed after `chorus`: its commands, their options and arguments, read off the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from msgspec import Struct

# Commands whose arguments are specialists' names and these words, whatever they are called there.
ALSO: dict[tuple[str, ...], list[str]] = {
    ("start",): ["all", "gateway"],
    ("stop",): ["all", "gateway"],
    ("restart",): ["all", "gateway"],
    ("drain",): ["all", "gateway"],
    ("status",): ["gateway"],
    ("logs",): ["supervisor", "gateway"],
    ("events",): ["supervisor", "gateway"],
    ("ask",): [],
    ("history",): ["search", "show", "rm", "export"],
}


class Option(Struct, frozen=True):
    """One option with all its spellings. `takes` is nothing, a file, anything, or one of `choices`."""

    spellings: list[str]
    help: str
    takes: str = ""  # "", "value" or "file"
    choices: list[str] = []


class Place(Struct, frozen=True):
    """What may follow a command. `path` is `()` for chorus itself, `("models", "pull")` for a command in a group.

    `commands` are those in it, with a line of help each.

    `arguments` is what its arguments are: "names" of specialists, "words" of `choices`, or "" for anything else.
    """

    path: tuple[str, ...]
    commands: dict[str, str]
    options: list[Option]
    arguments: str = ""
    choices: list[str] = []


def places(command: click.Command, ctx: click.Context, path: tuple[str, ...] = ()) -> Iterator[Place]:
    """The command and everything below it, outermost first. Imports every command."""
    inner: dict[str, click.Command] = {}
    if isinstance(command, click.Group):
        found = {name: command.get_command(ctx, name) for name in command.list_commands(ctx)}
        inner = {name: one for name, one in found.items() if one is not None and not one.hidden}
    params = command.get_params(ctx)
    options = [_option(one, ctx) for one in params if isinstance(one, click.Option) and not one.hidden]
    arguments, choices = _arguments([one for one in params if isinstance(one, click.Argument)])
    if path in ALSO:
        arguments, choices = "names", ALSO[path]
    elif path == ("help",):
        from supervisor.cli.help import TOPICS

        choices = list(TOPICS)
    helps = {name: one.get_short_help_str(100) for name, one in inner.items()}
    yield Place(path, helps, options, arguments, choices)
    for name, one in inner.items():
        yield from places(one, click.Context(one, parent=ctx, info_name=name), (*path, name))


def _option(option: click.Option, ctx: click.Context) -> Option:
    takes = "" if option.is_flag or option.count else "file" if isinstance(option.type, click.Path) else "value"
    help_ = (option.help or "").splitlines()[0] if option.help else ""
    return Option([*option.opts, *option.secondary_opts], help_, takes, _choices(option.type))


def _arguments(arguments: list[click.Argument]) -> tuple[str, list[str]]:
    for argument in arguments:
        if argument.name in ("name", "names") and argument.type is click.STRING:
            return "names", []
        if choices := _choices(argument.type):
            return "words", choices
        if isinstance(argument.type, click.Path):
            return "files", []
    return "", []


def _choices(type_: click.ParamType[Any]) -> list[str]:
    return [str(choice) for choice in type_.choices] if isinstance(type_, click.Choice) else []
