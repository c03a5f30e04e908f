"""`chorus config`: what is configured, whether it is right, and where it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from supervisor.cli.context import invocation, settings_of
from supervisor.config import Loaded, user_file
from supervisor.locate import Key, dotted


@click.group("config")
def config_command() -> None:
    """Check, show or begin the configuration."""


@config_command.command()
@click.pass_context
def check(ctx: click.Context) -> None:
    """Read everything; print ok and the files, or every mistake (exit 2)."""
    loaded = settings_of(ctx)
    click.echo("ok")
    for file in loaded.files:
        click.echo(file)
    if not loaded.files:
        click.echo("no configuration file: built-in defaults (chorus config init writes one)", err=True)


@config_command.command()
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with origins.")
@click.pass_context
def show(ctx: click.Context, origin: bool, as_json: bool) -> None:
    """Print the configuration in force, after all layers."""
    loaded = settings_of(ctx)
    if as_json:
        click.echo(json.dumps(_report(loaded), ensure_ascii=False))
        return
    for line in as_toml(msgspec.to_builtins(loaded.settings), loaded.origins if origin else {}):
        click.echo(line)


@config_command.command()
@click.option("--force", is_flag=True, help="Keep an existing file as NAME.bak and write a new one.")
@click.pass_context
def init(ctx: click.Context, force: bool) -> None:
    """Write a configuration file with every key in it, all commented out."""
    target = _target(ctx)
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if force and target.exists():
            kept = target.rename(_unused(target))
            click.echo(f"the file that was there is now {kept}", err=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(example())
    except FileExistsError:
        raise click.ClickException(f"{target} exists: edit it, or use --force to begin anew") from None
    except OSError as refused:
        raise click.ClickException(f"cannot write {target}: {refused.strerror or refused}") from refused
    click.echo(target)


@config_command.command()
@click.pass_context
def path(ctx: click.Context) -> None:
    """Print the path of the file that is yours to edit."""
    target = _target(ctx)
    click.echo(target)
    if not target.exists():
        click.echo("it does not exist yet: chorus config init writes it", err=True)


def example() -> str:
    """A configuration file that says nothing and shows everything."""
    from importlib.resources import files

    return files("supervisor.cli").joinpath("example.toml").read_text("utf-8")


def as_toml(table: dict[str, Any], origins: dict[str, str], above: Key = ()) -> Iterator[str]:
    """The table's lines: its own values first, then the tables in it. What is None has no place in TOML."""
    for key, value in table.items():
        if value is not None and not isinstance(value, dict):
            comment = f"  # {where}" if (where := origins.get(dotted((*above, key)))) else ""
            yield f"{dotted((key,))} = {_value(value)}{comment}"
    for key, value in table.items():
        if isinstance(value, dict) and (inner := list(as_toml(value, origins, (*above, key)))):
            head = [] if inner[0].startswith("\n[") else [f"\n[{dotted((*above, key))}]"]
            yield from [*head, *inner]


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float):
        return repr(value)  # JSON has no word for inf
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("\x7f", r"\\u007f", text)  # the one character that JSON allows in a string and TOML does not


def _report(loaded: Loaded) -> dict[str, Any]:
    return {
        "version": 1,
        "settings": msgspec.to_builtins(loaded.settings),
        "origins": loaded.origins,
        "files": [str(file) for file in loaded.files],
        "dirs": {name: str(folder) for name, folder in msgspec.structs.asdict(loaded.dirs).items()},
        "socket": str(loaded.socket),
    }


def _target(ctx: click.Context) -> Path:
    """The file that counts over the user's own where one was named."""
    call = invocation(ctx)
    named = call.config_file or call.environ.get("CHORUS_CONFIG")
    return Path(named) if named else user_file(call.environ)


def _unused(target: Path) -> Path:
    """A name for a copy that is nobody's yet: an earlier copy is not lost to a later one."""
    names = (target.with_name(f"{target.name}.bak{number or ''}") for number in range(1000))
    return next(name for name in names if not name.exists())
