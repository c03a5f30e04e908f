"""What every command shares: how `chorus` was called, and the configuration that follows from it."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import click
from msgspec import Struct

from supervisor.config import ConfigError, Loaded, load, without_files


class Invocation(Struct, frozen=True, kw_only=True):
    """The call, before any command: the click context's `obj`.

    `flags` has dotted keys of the configuration (`gateway.port`), None for those that were not given.
    `color` is auto, always or never.
    """

    config_file: Path | None = None
    flags: dict[str, Any] = {}
    environ: MutableMapping[str, str]
    color: str = "auto"
    debug: bool = False


def invocation(ctx: click.Context) -> Invocation:
    found = ctx.find_object(Invocation)
    assert found is not None, "the main group sets ctx.obj"
    return found


def arguments(call: Invocation) -> list[str]:
    """The words that say the same to another `chorus`, wherever it is called."""
    words = [f"--config={call.config_file.absolute()}"] if call.config_file else []
    options = {"port_base": "--port-base", "backend.kind": "--backend", "backend.url": "--backend-url"}
    options["backend.model"] = "--default-model"
    return words + [f"{options[key]}={value}" for key, value in call.flags.items() if value is not None]


def surroundings_of(ctx: click.Context) -> Loaded:
    """As settings_of, for commands that only reach what runs already: a mistake in the configuration must not keep
    a user from looking at the team or from stopping it. The mistakes are said, and left out; those of this very call
    are its own.
    """
    call = invocation(ctx)
    try:
        return settings_of(ctx)
    except ConfigError as error:
        if call.config_file is not None or any(flag is not None for flag in call.flags.values()):
            raise
        click.echo(f"{error}\nthe configuration is left out", err=True)
        return without_files(call.environ)


def settings_of(ctx: click.Context) -> Loaded:
    """The configuration, read once in each call of `chorus`. Raises ConfigError; the main group prints it."""
    loaded = ctx.meta.get(__name__)
    if not isinstance(loaded, Loaded):
        call = invocation(ctx)
        loaded = ctx.meta[__name__] = load(call.flags, call.config_file, call.environ)
    return loaded
