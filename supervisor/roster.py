"""Who is in the team: the port of each specialist, what it is told about itself, and what its daemon needs; and the gateway.

The one writer of `ports.json` in the state folder, which holds the offsets given to names outside the table:
they stay the same when the roster changes.
"""

from __future__ import annotations

import ipaddress
import json
import os
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from protocol import names
from protocol.errors import NotFound
from protocol.settings import (
    Backend,
    ChildConfig,
    Colleague,
    GatewayConfig,
    Settings,
    SpecialistConfig,
    SpecialistSettings,
)
from supervisor.config import ConfigError, Loaded
from supervisor.places import private_folder

LAST_PORT = 65535
UNKNOWN = SpecialistSettings()


class Persona(Struct, frozen=True, forbid_unknown_fields=True):
    """Who a specialist is. `role` is two to four words; the model is told `persona`, after the preamble."""

    role: str
    description: str
    capabilities: list[str]
    persona: str


def resolve(loaded: Loaded, name: str) -> SpecialistConfig:
    """Everything that the daemon of one specialist needs. NotFound where nobody has this name."""
    settings, name = loaded.settings, names.canonical(name)
    known = dict.fromkeys([*settings.roster, *settings.specialists, *names.ROSTER])
    if name not in known:
        close = names.near(name, known, 1)
        raise NotFound(f'there is no specialist "{name}"' + (f': did you mean "{close[0]}"?' if close else ""))
    own, who = settings.specialists.get(name, UNKNOWN), persona(name, settings)
    return SpecialistConfig(
        name=name,
        addresses=addresses(settings.host),
        port=port_of(loaded, name),
        role=who.role,
        persona=f"{_preamble()}\n\n{who.persona}",
        description=who.description,
        capabilities=who.capabilities,
        model=own.model or settings.backend.model,
        backend=_told(settings.backend),
        url=loaded.url,
        url_asked_for=loaded.url_asked_for,
        api_key=loaded.api_key,
        options=settings.backend.options | own.options,
        limits=settings.limits,
        grace=settings.supervision.grace,
        retention_days=settings.history.retention_days,
        allowed_uids=loaded.allowed_uids,
        data_dir=str(loaded.dirs.data),
        state_dir=str(loaded.dirs.state),
        log_dir=str(loaded.dirs.logs),
        command=own.command,
        command_dir=_said_in(loaded, f"specialists.{name}.command") if own.command else None,
    )


def gateway(loaded: Loaded) -> GatewayConfig:
    """Everything that the gateway needs, whether it is to run or not."""
    settings, own = loaded.settings, loaded.settings.gateway
    host = addresses(settings.host)[0]
    certificate, key = loaded.tls or (None, None)
    return GatewayConfig(
        places=[(address, port) for port in (own.port, *own.also_ports) for address in addresses(own.host)],
        # How it is kept is ours, and no news to the process.
        settings=msgspec.structs.replace(
            own, tls_certificate=certificate, tls_key=key, restart=None, max_rss_bytes=None
        ),
        limits=settings.limits,
        roster=[Colleague(name, host, port_of(loaded, name)) for name in settings.roster],
        grace=settings.supervision.grace,
        retention_days=settings.history.retention_days,
        allowed_uids=loaded.allowed_uids,
        socket=str(loaded.socket),
        data_dir=str(loaded.dirs.data),
        state_dir=str(loaded.dirs.state),
        log_dir=str(loaded.dirs.logs),
    )


def children(loaded: Loaded) -> list[ChildConfig]:
    """Everybody who is to be kept alive: the whole roster, and the gateway where there is to be one."""
    specialists = [resolve(loaded, name) for name in loaded.settings.roster]
    return [*specialists, *([gateway(loaded)] if loaded.settings.gateway.enabled else [])]


def addresses(host: str) -> list[str]:
    """Where one listens for a host of the configuration; loopback is both of its addresses."""
    if host in ("127.0.0.1", "localhost"):
        return ["127.0.0.1", "::1"]
    return [str(ipaddress.ip_address(host))]  # in the spelling of the kernel, by which a listener is known again


def _told(backend: Backend) -> Backend:
    """What a daemon goes by of it; the rest it is told resolved or not at all, and a change there is none to it."""
    return msgspec.structs.replace(backend, model=None, url=None, api_key_file=None, parallel=None)


def _said_in(loaded: Loaded, key: str) -> str | None:
    """The folder of the file that says something: what it names may lie beside it."""
    file = loaded.origins.get(key, "").rpartition(":")[0]
    return str(Path(file).absolute().parent) if file else None


# -- ports ---------------------------------------------------------------------------------------------------


def port_of(loaded: Loaded, name: str) -> int:
    """The port of a specialist. A name outside the table that has none yet is given one, for good."""
    settings, own = loaded.settings, loaded.settings.specialists.get(name, UNKNOWN)
    if own.port or name in names.OFFSETS:
        return own.port or settings.port_base + names.OFFSETS[name]
    remembered = _remembered(loaded.dirs.state)
    given = offsets(settings, remembered)
    if given != remembered:
        _remember(loaded.dirs.state, given)
    return settings.port_base + given[name]


def offsets(settings: Settings, remembered: Mapping[str, int]) -> dict[str, int]:
    """The offsets of all names outside the table: those that had one keep it, unless its port was given away.

    Raises ConfigError where the ports are used up.
    """
    ordered = {one.port for one in settings.specialists.values()}
    ordered |= {settings.gateway.port, *settings.gateway.also_ports} if settings.gateway.enabled else set()
    taken = {port - settings.port_base for port in ordered if port}
    given = {name: offset for name, offset in remembered.items() if offset not in taken}
    for name in dict.fromkeys([*settings.roster, *settings.specialists]):
        own = settings.specialists.get(name, UNKNOWN)
        if name in names.OFFSETS or own.port or name in given:
            continue
        used = {*given.values(), *taken}
        given[name] = next(offset for offset in range(names.FIRST_FREE_OFFSET, LAST_PORT) if offset not in used)
    if over := [name for name in settings.roster if settings.port_base + given.get(name, 0) > LAST_PORT]:
        raise ConfigError([f"port_base: expected less, got {settings.port_base}: no port is left for {over[0]}"])
    return given


def _remembered(state: Path) -> dict[str, int]:
    """What was given before. Without the file, or with a damaged one, the roster's order decides."""
    try:
        return msgspec.json.decode((state / "ports.json").read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def _remember(state: Path, given: Mapping[str, int]) -> None:
    try:
        file = private_folder(state) / "ports.json"
        draft = file.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(given, indent=1) + "\n", "utf-8")
        draft.replace(file)
    except OSError:  # whoever only asks for the status may not write; the supervisor fails by its own writing
        return


# -- personas ------------------------------------------------------------------------------------------------


def persona(name: str, settings: Settings) -> Persona:
    """Who this is: our own table, under what the configuration says; a name of the user's is a stranger."""
    own = settings.specialists.get(name, UNKNOWN)
    table = _tables().get(name)
    known = msgspec.convert(table, Persona) if table is not None else _stranger(name, own.description)
    return Persona(
        role=known.role,
        description=own.description if own.description is not None else known.description,
        capabilities=own.capabilities if own.capabilities is not None else known.capabilities,
        persona=own.persona.strip() if own.persona else known.persona.strip(),
    )


def _stranger(name: str, description: str | None) -> Persona:
    title = name.replace("_", " ").title()
    field = (description or "").strip().rstrip(".")
    work = (
        f"Your field is this: {field}." if field else "You have no fixed field: your strength is an independent look."
    )
    return Persona(
        role="specialist",
        description=description or f"{title}, a specialist of your own.",
        capabilities=[],
        persona=f"You are {title}. {work} Answer first what was asked, from your field. Then name the one "
        "assumption that your answer depends on most, and how it could be checked. Where a question lies "
        "outside your field, say so in one sentence and give only what you are sure of.",
    )


@cache
def _tables() -> dict[str, Any]:
    from importlib.resources import files

    return tomllib.loads(files("daemon").joinpath("personas.toml").read_text("utf-8"))


def _preamble() -> str:
    return str(_tables()["preamble"]).strip()
