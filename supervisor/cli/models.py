"""`chorus models`: what the model server has and who uses it; `chorus models pull NAME` has it fetch one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

from supervisor.cli import look
from supervisor.cli.context import settings_of
from supervisor.cli.exits import Exit, Failure
from supervisor.config import Loaded

if TYPE_CHECKING:
    from protocol.control import StatusReport
    from supervisor.checkup.absence import Absence
    from supervisor.checkup.model_server import Inventory, Model

NAMED = 4  # users of a model; of more only the number is shown
HEADER = ("NAME", "SIZE", "LOADED", "CONTEXT", "USED BY")


@click.group("models", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def models_command(ctx: click.Context, as_json: bool) -> int:
    """Show the model server's models, or pull one."""
    if ctx.invoked_subcommand is not None:
        return Exit.DONE
    import anyio

    from supervisor.checkup.absence import Absence, no_model
    from supervisor.checkup.model_server import inventory

    loaded = settings_of(ctx)
    _refuse_builtin(loaded)
    try:
        found = anyio.run(inventory, loaded)
        if not found.models:
            raise no_model(loaded)
    except Absence as error:
        raise failure_of(error) from None
    users = used_by(loaded, _report(loaded))
    if as_json:
        click.echo(msgspec.json.encode(as_object(found, users)).decode())
    else:
        show(found, users, len(loaded.settings.roster))
    return Exit.DONE


@models_command.command("pull")
@click.argument("model", metavar="NAME")
@click.option("--json", "as_json", is_flag=True, help="The model server's own events, one a line.")
@click.pass_context
def pull_command(ctx: click.Context, model: str, as_json: bool) -> int:
    """Fetch a model; what was fetched before a Ctrl-C is kept."""
    import anyio

    from supervisor.checkup.absence import Absence
    from supervisor.cli.pulling import pull_and_show

    loaded = settings_of(ctx)
    _refuse_builtin(loaded)
    if loaded.settings.backend.kind == "openai_compatible":
        raise Failure(f"only Ollama pulls models: load {model} at {loaded.url} itself", Exit.USAGE)
    try:
        anyio.run(pull_and_show, loaded, model, as_json)
    except Absence as error:
        raise failure_of(error) from None
    except KeyboardInterrupt:
        click.echo(f"stopped; chorus models pull {model} goes on from here", err=True)
        raise
    return Exit.DONE


def used_by(loaded: Loaded, report: StatusReport | None) -> dict[str, list[str]]:
    """Which specialists answer with which model, by its full name: as the supervisor says, or as is configured."""
    from daemon.backends.memory import Memory
    from daemon.backends.ollama_models import full_name

    settings = loaded.settings
    default = settings.backend.model or Memory(str(loaded.dirs.state)).model_at(loaded.url)
    own = {name: one.model for name, one in settings.specialists.items()}
    using = {name: own.get(name) or default for name in settings.roster}
    if report:  # of those that run it is known; "builtin" is no model
        using |= {one.name: one.model for one in report.specialists if one.model and one.backend != "builtin"}
    users: dict[str, list[str]] = {}
    for name, model in using.items():
        if model:
            users.setdefault(full_name(model), []).append(name)
    return users


def _report(loaded: Loaded) -> StatusReport | None:
    """What the supervisor says; None where none runs, or where it was started for another model server, which is said."""
    from supervisor.checkup.models import asked_instead
    from supervisor.cli.reach import glance

    try:
        report = glance(loaded)
    except Failure:
        return None
    if theirs := asked_instead(loaded, report):
        click.echo(f"the team asks {theirs}, as it was started; this is {loaded.url}, as is configured here", err=True)
        return None
    return report


def show(found: Inventory, users: dict[str, list[str]], team: int) -> None:
    """The table; below it, for people, models that somebody is to use and that are not there."""
    from daemon.backends.ollama_models import full_name

    rows = []
    for model in sorted(found.models, key=lambda one: one.name):
        name = full_name(model.name)
        loaded = found.loaded.get(name)
        who = users.get(name, [])
        rows.append(
            (
                look.harmless(model.name),
                look.size(model.size),
                where_loaded(loaded) if loaded else "-",
                str(_context(model, loaded) or "-"),
                _people(who, team),
            )
        )
    head, *lines = look.table(HEADER, rows, look.width())
    click.echo(look.paint(head, None, sys.stdout, bold=True))
    for line in lines:
        click.echo(line)
    for name, who in users.items():
        if not found.has(name):
            click.echo(
                f"{name} is not there, which {_people(who, team)} should use  do: chorus models pull {name}", err=True
            )


def where_loaded(model: Model) -> str:
    """`GPU`, `CPU`, or how much of it is on the GPU."""
    if model.size_vram is None or not model.size:
        return "yes"
    share = model.size_vram / model.size
    return "CPU" if share == 0 else "GPU" if share >= 1 else f"{share:.0%} GPU"


def as_object(found: Inventory, users: dict[str, list[str]]) -> dict[str, Any]:
    from daemon.backends.ollama_models import full_name

    def one(model: Model) -> dict[str, Any]:
        name = full_name(model.name)
        loaded = found.loaded.get(name)
        return {
            "name": model.name,
            "size_bytes": model.size,
            "digest": model.digest or None,
            "loaded": loaded is not None,
            "loaded_bytes": loaded.size if loaded else None,
            "vram_bytes": loaded.size_vram if loaded else None,
            "expires_at": loaded.expires_at if loaded else None,
            "context": _context(model, loaded),
            "used_by": users.get(name, []),
        }

    missing = [{"name": name, "used_by": who} for name, who in users.items() if not found.has(name)]
    models = [one(model) for model in sorted(found.models, key=lambda model: model.name)]
    return {"version": 1, "url": found.url, "kind": found.kind, "models": models, "missing": missing}


def failure_of(error: Absence) -> Failure:
    return Failure(error.sentence, Exit.MODEL_SERVER, remedy=error.remedy, code=error.cause)


def _context(model: Model, loaded: Model | None) -> int | None:
    """The window it runs with; of one that is not loaded, the largest it has, where the server says."""
    if loaded and loaded.context_length:
        return loaded.context_length
    return model.details.context_length if model.details else None


def _people(who: list[str], team: int) -> str:
    """Names while there are few."""
    if len(who) <= NAMED:
        return ", ".join(who) or "-"
    return f"all {team}" if len(who) == team else f"{len(who)} of {team}"


def _refuse_builtin(loaded: Loaded) -> None:
    if loaded.settings.backend.kind == "builtin":
        raise Failure(
            "there is no model server: backend.kind is builtin",
            Exit.MODEL_SERVER,
            remedy="set backend.kind to auto or ollama",
            code="builtin",
        )
