"""The configuration, read once: files, environment and flags become one frozen value that knows its origins.

Layers, the later over the earlier: defaults, /etc/chorus/chorus.toml, the user's file, --config,
environment, flags. Tables merge key by key; lists replace each other. All mistakes of all layers are
reported together. Who is in the team and what each of them is told is `supervisor/roster.py`, which builds
on this; its two functions for others stand here too.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from protocol import names
from protocol.settings import DEFAULT_URL, Settings, SpecialistConfig, Supervision
from supervisor import checks, files, locate, places, sense
from supervisor.checks import Leaves, Said, Source
from supervisor.locate import Key, dotted
from supervisor.places import Dirs

__all__ = ["ConfigError", "Dirs", "Loaded", "load", "resolve", "supervision", "team", "user_file", "without_files"]

SYSTEM_FILE = Path("/etc/chorus/chorus.toml")
DEFAULT = "default"

# Later ones win. OLLAMA_HOST stands apart: it speaks of Ollama only, and in forms of its own.
VARIABLES: dict[str, Key] = {
    "CHORUS_PORT_BASE": ("port_base",),
    "CHORUS_ROSTER": ("roster",),
    "CHORUS_BACKEND": ("backend", "kind"),
    "CHORUS_BACKEND_URL": ("backend", "url"),
    "CHORUS_MODEL": ("backend", "model"),
    "CHORUS_GATEWAY": ("gateway", "enabled"),
    "CHORUS_GATEWAY_PORT": ("gateway", "port"),
    "CHORUS_RESTARTER": ("supervision", "restarter"),
}
# Flags are called as their key is, but for these.
FLAGS = {"backend.kind": "--backend", "backend.model": "--model"}


class ConfigError(Exception):
    """All that is wrong with a configuration, one line each: `file:line: key: expected what, got what`."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = _by_line(dict.fromkeys(mistakes))
        super().__init__("\n".join(self.mistakes))


def _by_line(mistakes: Iterable[str]) -> list[str]:
    """Down each file, as one mends it; the files in the order in which they were read."""
    order: dict[str, int] = {}

    def place(mistake: str) -> tuple[int, int]:
        match = re.match(r"(.+?):(\d+):", mistake)
        return order.setdefault(match[1] if match else mistake, len(order)), int(match[2]) if match else 0

    return sorted(mistakes, key=place)


class Loaded(Struct, frozen=True, kw_only=True):
    """The configuration and what else the surroundings say.

    `settings` has every name in its one spelling. `origins` maps each dotted key to "default",
    "/path/file.toml:8", a variable or a flag. `files` are those that were read, lowest layer first; `places` is where
    one may be, each with the time of its last change before it was read, or None where there was none.
    `url_asked_for` is whether somebody named the model server. The folders of `dirs` may not exist yet:
    whoever writes makes them (`places.private_folder`). `api_key` is a secret; `tls` are the gateway's certificate and key.
    Members of the group `control_gid` may control the team; they are among `allowed_uids`, too.
    """

    settings: Settings
    origins: dict[str, str]
    files: list[Path]
    dirs: Dirs
    socket: Path
    url_asked_for: bool
    allowed_uids: list[int]
    api_key: str | None
    tls: tuple[str, str] | None = None
    control_gid: int | None = None
    places: dict[str, float | None] = {}

    @property
    def url(self) -> str:
        return self.settings.backend.url or DEFAULT_URL


def load(flags: dict[str, Any], config_file: Path | None, environ: Mapping[str, str]) -> Loaded:
    """Reads and checks everything. `flags` has dotted keys (`gateway.port`); None means not given.

    Raises ConfigError with every mistake there is.
    """
    dirs = places.dirs(environ)
    reading = _Files()
    candidates = _candidates(dirs, config_file, environ)
    changed = {str(path.absolute()): changed_at(path) for path, _ in candidates}
    for path, is_asked_for in candidates:
        reading.add(path, is_asked_for)
    said, mistakes = reading.said, reading.mistakes
    outer = [*_from_environment(environ), *_from_flags(flags)]
    for raw, source in outer:
        leaves, wrong = checks.read(raw, source)
        said |= leaves
        mistakes += wrong
    mistakes += _ollama_host(said, environ)
    mistakes += _socket_mistakes(environ)
    group, wrong = _group(environ)
    mistakes += wrong
    spelled = _settings(said)
    if reading.all_parsed:  # or what the others say of it would be nonsense
        mistakes += [_mistake(key, what, said) for key, what in sense.findings(spelled, said)]
    api_key, unread = files.api_key(spelled.backend, said, environ)
    tls, unserved = files.tls(spelled.gateway, said, environ)
    mistakes += [_mistake(key, what, said) for key, what in [*unread, *unserved]]
    if mistakes:
        raise ConfigError(mistakes)
    return Loaded(
        settings=_canonical(spelled),
        origins=_origins(spelled, said),
        files=reading.read,
        dirs=dirs,
        socket=places.socket_path(dirs, environ),
        url_asked_for=spelled.backend.url is not None,
        allowed_uids=[*_uids(spelled.allow_users), *(sense.members(group) if group is not None else [])],
        api_key=api_key,
        tls=tls,
        control_gid=group,
        places=changed,
    )


def changed_at(path: Path) -> float | None:
    """When a file was changed last, as a Unix time; None where there is none that can be seen."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def without_files(environ: Mapping[str, str]) -> Loaded:
    """The defaults, with only the folders and the socket taken from the surroundings: enough to reach what runs."""
    dirs = places.dirs(environ)
    return Loaded(
        settings=Settings(),
        origins={},
        files=[],
        dirs=dirs,
        socket=places.socket_path(dirs, environ),
        url_asked_for=False,
        allowed_uids=[],
        api_key=None,
    )


def resolve(loaded: Loaded, name: str) -> SpecialistConfig:
    """Everything that one daemon needs, by any spelling of its name. NotFound (protocol) for a stranger."""
    from supervisor import roster

    return roster.resolve(loaded, name)


def team(loaded: Loaded) -> list[SpecialistConfig]:
    """The whole roster, in its order."""
    from supervisor import roster

    return [roster.resolve(loaded, name) for name in loaded.settings.roster]


def supervision(loaded: Loaded, name: str) -> Supervision:
    """How one of them is kept: the team's settings under its own."""
    team_wide, settings = loaded.settings.supervision, loaded.settings
    own = settings.gateway if name == names.GATEWAY else settings.specialists.get(name)
    if own is None:
        return team_wide
    return msgspec.structs.replace(
        team_wide,
        restart=own.restart or team_wide.restart,
        max_rss_bytes=own.max_rss_bytes or team_wide.max_rss_bytes,
    )


def user_file(environ: Mapping[str, str]) -> Path:
    return places.dirs(environ).config / "config.toml"


# -- files ---------------------------------------------------------------------------------------------------


def _candidates(dirs: Dirs, config_file: Path | None, environ: Mapping[str, str]) -> list[tuple[Path, bool]]:
    """The files that count, lowest first, each with whether somebody named it."""
    if config_file is None and (variable := environ.get("CHORUS_CONFIG")):
        config_file = Path(variable)
    found = {SYSTEM_FILE: False, dirs.config / "config.toml": False}
    if config_file is not None:
        found[config_file] = True
    return list(found.items())


class _Files:
    """What the files say together."""

    def __init__(self) -> None:
        self.said: Leaves = {}
        self.mistakes: list[str] = []
        self.read: list[Path] = []
        self.all_parsed = True

    def add(self, path: Path, is_asked_for: bool) -> None:
        try:
            text = path.read_bytes().decode("utf-8-sig")
            raw = tomllib.loads(text)
        except (FileNotFoundError, NotADirectoryError) as gone:
            if is_asked_for:
                self._unreadable(f"{path}: {files.reason(gone)}")
        except OSError as unreadable:
            self._unreadable(f"{path}: cannot be read: {files.reason(unreadable)}")
        except UnicodeDecodeError as foreign:
            self._unreadable(f"{path}:{foreign.object[: foreign.start].count(10) + 1}: expected UTF-8")
        except tomllib.TOMLDecodeError as broken:
            self._unreadable(_syntax(path, text, str(broken)))
        else:
            self.read.append(path)
            leaves, wrong = checks.read(raw, Source(str(path), locate.lines(text)))
            self.said |= leaves
            self.mistakes += wrong

    def _unreadable(self, mistake: str) -> None:
        self.mistakes.append(mistake)
        self.all_parsed = False


def _syntax(path: Path, text: str, message: str) -> str:
    """The parser puts the place at the end of its sentence; an editor finds it at the beginning."""
    if match := re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL):
        what, line, column = match.groups()
    else:
        what, line, column = message.removesuffix(" (at end of document)"), str(text.count("\n") + 1), "1"
    return f"{path}:{line}:{column}: {what[:1].lower()}{what[1:]}"


# -- environment and flags -----------------------------------------------------------------------------------


def _from_environment(environ: Mapping[str, str]) -> list[tuple[dict[str, Any], Source]]:
    given = [(variable, key) for variable, key in VARIABLES.items() if environ.get(variable)]
    return [(_nested(key, _from_text(key, environ[variable])), Source(variable)) for variable, key in given]


def _from_flags(flags: dict[str, Any]) -> list[tuple[dict[str, Any], Source]]:
    layers = []
    for name, value in flags.items():
        if value is not None:
            key = tuple(name.split("."))
            flag = FLAGS.get(name, "--" + name.replace(".", "-").replace("_", "-"))
            plain = _from_text(key, value) if isinstance(value, str) else value
            layers.append((_nested(key, list(plain) if isinstance(plain, tuple) else plain), Source(flag)))
    return layers


def _from_text(key: Key, text: str) -> Any:
    """A variable's text as the value a file would have. What does not fit stays text, to be refused."""
    if key == ("roster",):
        return [part.strip() for part in text.split(",") if part.strip()]
    if key[-1] in ("port", "port_base") and text.strip().isdecimal():
        return int(text)
    if key[-1] == "enabled":
        return {"true": True, "false": False}.get(text.strip().lower(), text)
    return text


def _nested(key: Key, value: Any) -> dict[str, Any]:
    for part in reversed(key):
        value = {part: value}
    return dict(value)


def _ollama_host(said: Leaves, environ: Mapping[str, str]) -> list[str]:
    """Puts OLLAMA_HOST over the files and under CHORUS_BACKEND_URL, unless another kind is meant."""
    text, key = environ.get("OLLAMA_HOST", "").strip(" \t\"'"), ("backend", "url")
    kind = said.get(("backend", "kind"))
    if not text or (kind and kind.value not in ("auto", "ollama")):
        return []
    if key in said and said[key].source.lines is None:
        return []
    url = ollama_url(text)
    if sense.bad_url(url):
        return [f"OLLAMA_HOST: expected host, host:port or http://host:port, got {checks.shown(text)}"]
    said[key] = Said(url, Source("OLLAMA_HOST"), key)
    return []


def ollama_url(text: str) -> str:
    """Where a client finds the Ollama of this OLLAMA_HOST; as envconfig.Host() in Ollama's source reads it.

    With a scheme the default port is the scheme's. "All interfaces" means loopback to a client.
    """
    scheme, separator, rest = text.rpartition("://")
    host_port, slash, path = rest.partition("/")
    default = {"http": ":80", "https": ":443"}.get(scheme, ":11434") if separator else ":11434"
    if match := re.fullmatch(r"\[(.*)\](:.*)?", host_port):
        host, port = match.group(1), match.group(2) or default
    elif host_port.count(":") > 1:
        host, port = host_port, default
    else:
        host, colon, number = host_port.partition(":")
        port = colon + number if colon else default
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme or 'http'}://{f'[{host}]' if ':' in host else host}{port}{slash}{path}".rstrip("/")


def _socket_mistakes(environ: Mapping[str, str]) -> list[str]:
    length = len(os.fsencode(environ.get("CHORUS_SOCKET", "")))
    if length <= places.MAX_SOCKET_PATH:
        return []
    return [f"CHORUS_SOCKET: expected a path of at most {places.MAX_SOCKET_PATH} bytes, got {length}"]


def _group(environ: Mapping[str, str]) -> tuple[int | None, list[str]]:
    """The group that may control the team, where the service's unit names one."""
    name = environ.get("CHORUS_GROUP")
    if not name:
        return None, []
    gid = sense.gid(name)
    return gid, [f"CHORUS_GROUP: expected a group of this machine, got {checks.shown(name)}"] if gid is None else []


def _uids(users: list[str]) -> list[int]:
    return [uid for user in users if (uid := sense.uid(user)) is not None]


# -- the whole -----------------------------------------------------------------------------------------------


def _settings(said: Leaves) -> Settings:
    raw: dict[str, Any] = {}
    for key, one in said.items():
        table = raw
        for part in key[:-1]:
            table = table.setdefault(part, {})
        if one.value == {}:
            table.setdefault(key[-1], {})
        else:
            table[key[-1]] = one.value
    return msgspec.convert(raw, Settings)


def _canonical(settings: Settings) -> Settings:
    url = settings.backend.url
    return msgspec.structs.replace(
        settings,
        roster=[names.canonical(name) for name in settings.roster],
        roles={role: names.canonical(name) for role, name in settings.roles.items()},
        backend=msgspec.structs.replace(settings.backend, url=url.rstrip("/") if url else None),
    )


def _mistake(key: Key, what: str, said: Leaves) -> str:
    """A mistake at the place where its key, or a table around it, was given; else by its key alone."""
    for length in range(len(key), 0, -1):
        if one := said.get(key[:length]):
            return one.source.mistake((*one.spelled, *key[length:]), what)
    return f"{dotted(key)}: {what}"


def _origins(settings: Struct, said: Leaves, above: Key = ()) -> dict[str, str]:
    origins: dict[str, str] = {}
    for one in msgspec.structs.fields(settings):
        key, value = (*above, one.encode_name), getattr(settings, one.name)
        if isinstance(value, Struct):
            origins |= _origins(value, said, key)
        elif not isinstance(value, dict):
            origins[dotted(key)] = said[key].source.at(said[key].spelled) if key in said else DEFAULT
    if not above:  # dictionaries have no defaults: what is in them was said
        origins |= {dotted(key): one.source.at(one.spelled) for key, one in said.items() if one.value != {}}
    return origins
