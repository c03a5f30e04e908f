"""`chorus key`: keys for the gateway. Works on the file that the gateway reads, whether or not one runs."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import look
from supervisor.cli.context import settings_of, surroundings_of
from supervisor.cli.exits import Exit, Failure
from supervisor.cli.moment import span
from supervisor.config import Loaded

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.gateway.keys import Key, KeyScope

HEADER = ("ID", "SCOPE", "CREATED", "EXPIRES", "USED", "NAME")


@click.group("key")
def key_command() -> None:
    """Keys for the gateway: who may ask, and who may also start and stop."""


@key_command.command("create")
@click.option("--name", default="", help="What it is for.")
@click.option(
    "--scope", type=click.Choice(["chat", "admin"]), default="chat", show_default=True, help="admin: all of it."
)
@click.option("--expires", help="When it ends: 30d, 12h or 2027-01-31.  [default: never]")
@click.pass_context
def create_command(ctx: click.Context, name: str, scope: KeyScope, expires: str | None) -> int:
    """Make a key and print it, this once. It counts at once."""
    from supervisor.gateway import keys
    from supervisor.places import private_folder

    if not (name.isprintable() and len(name) <= 100):
        raise click.BadParameter("expected at most 100 printable characters", param_hint="--name")
    path = _file(settings_of(ctx))
    key, text = keys.make(scope, name, _until(expires))
    try:
        private_folder(path.parent)
        keys.add(path, key)
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from None
    ends = f", until {_when(key.expires)}" if key.expires is not None else ""
    click.echo(f"key {key.id}, scope {scope}{ends}; it is kept nowhere, and cannot be shown again", err=True)
    click.echo(text)
    return Exit.DONE


@key_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def list_command(ctx: click.Context, as_json: bool) -> int:
    """Show what keys there are, and when each was last used."""
    import msgspec

    from supervisor.gateway import keys, uses

    loaded = surroundings_of(ctx)
    path = _file(loaded)
    try:
        found = keys.read(path)
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from None
    used = uses.read(loaded.dirs.state / uses.FILE)
    if as_json:
        told = [_as_object(one, used.get(one.id)) for one in found]
        click.echo(msgspec.json.encode({"version": 1, "keys": told}).decode())
        return Exit.DONE
    if not found:
        click.echo("there is no key; chorus key create makes one", err=True)
        return Exit.DONE
    rows = [_row(one, used.get(one.id)) for one in found]
    for line in look.table(HEADER, rows, look.width()):
        click.echo(line)
    return Exit.DONE


@key_command.command("revoke")
@click.argument("key_id", metavar="ID")
@click.pass_context
def revoke_command(ctx: click.Context, key_id: str) -> int:
    """End a key; it counts for no request from now on. The whole key may be given for its ID."""
    from supervisor.gateway import keys

    path = _file(surroundings_of(ctx))
    whole = keys.TEXT.fullmatch(key_id)
    key_id = whole[1] if whole else key_id
    try:
        removed = keys.remove(path, key_id)
    except FileNotFoundError:  # not even the folder is there
        removed = None
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from None
    if removed is None:
        raise Failure(f"there is no key {key_id[:64]!r}", Exit.FAILED, remedy="chorus key list", code="not_found")
    click.echo(f"key {removed.id} is revoked", err=True)
    return Exit.DONE


def _file(loaded: Loaded) -> Path:
    from supervisor.gateway.keys import FILE

    return loaded.dirs.data / FILE


def _until(text: str | None) -> float | None:
    """The Unix time at which a key ends."""
    if text is None:
        return None
    now = datetime.now()
    try:
        length = span(text)
        ends = (datetime.fromisoformat(text.strip()) if length is None else now + length).timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no time: 30d, 12h or 2027-01-31", param_hint="--expires") from None
    if ends <= now.timestamp():
        raise click.BadParameter(f"{text!r} is over already", param_hint="--expires")
    return ends


def _as_object(key: Key, used: float | None) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scope": key.scope,
        "created": key.created,
        "expires": key.expires,
        "expired": key.is_over(time.time()),
        "last_used": used,
    }


def _row(key: Key, used: float | None) -> tuple[str, ...]:
    expires = "never" if key.expires is None else "expired" if key.is_over(time.time()) else _when(key.expires)
    last = _when(used) if used is not None else "never"
    return key.id, key.scope, _when(key.created), expires, last, look.harmless(key.name)


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _unusable(path: Path, error: OSError | ValueError) -> Failure:
    why = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
    return Failure(f"{path} cannot be used: {why}", Exit.FAILED, remedy="move it away, and make the keys anew")
