"""What follows from a configuration that was read again: who is added, removed, started anew, or only kept otherwise. Pure.

A process is started anew where what it was told has changed, and only there. Words for people never hold a secret: a value is
named where it is a number, a switch or a model, everything else by its key alone.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from protocol.control import Change, Plan
from protocol.names import GATEWAY
from protocol.settings import EVERY_ADDRESS, ChildConfig, GatewayConfig, Place, Settings, SpecialistConfig, Supervision

# Fields of a process's configuration that stand elsewhere in the file than by their own name.
SPELLED = {
    "addresses": "host",
    "url": "backend.url",
    "url_asked_for": "backend.url",
    "api_key": "backend.api_key_file",
    "retention_days": "history.retention_days",
    "allowed_uids": "allow_users",
    "role": "persona",
}
SHOWN = frozenset({"port", "model", "kind", "restart", "on_supervisor_exit"})  # texts that are no secret and no prose
OURS = frozenset({"grace"})  # told to the process, and held to by us: it need not be told anew
# Of the settings of supervision: those that count at the next start of the team, and those that are about no specialist.
LATER = frozenset({"restarter"})
WHOLE_TEAM = frozenset({"on_supervisor_exit"})
EVERY = frozenset(Supervision.__struct_fields__)
# What changes in these is said of each specialist, or above.
ELSEWHERE = frozenset(
    {
        "host",
        "port_base",
        "roster",
        "allow_users",
        "backend",
        "limits",
        "specialists",
        "history",
        "supervision",
        "gateway",
    }
)


class Member(Struct, frozen=True):
    """One specialist, or the gateway, as it is kept. `running` is what its process was started with, None without a process.

    `is_kept_down` is one that has failed and that nobody but an operator starts again: so its restart policy says.
    """

    config: ChildConfig
    settings: Supervision
    running: ChildConfig | None = None
    wanted: Literal["up", "down", "drained"] = "up"
    has_failed: bool = False
    is_kept_down: bool = False

    @property
    def holds(self) -> set[Place]:
        """The places that are taken by it."""
        return set((self.running or self.config).places) if self.wanted != "down" else set()


def plan(now: dict[str, Member], then: dict[str, Member], before: Settings, after: Settings) -> Plan:
    """What is to be done for `then` to be so, where `now` is."""
    changes = [_change(one, now.get(name)) for name, one in then.items()]
    changes += [Change(name, "remove") for name in now if name not in then]
    live = _differences("", before, after, skip=ELSEWHERE)
    live += _differences("supervision", before.supervision, after.supervision, skip=EVERY - WHOLE_TEAM)
    later = _differences("supervision", before.supervision, after.supervision, skip=EVERY - LATER)
    specialists = [one for one in changes if one.name != GATEWAY]
    gateway = next((one for one in changes if one.name == GATEWAY), None)
    return Plan(specialists=specialists, gateway=gateway, live=live, later=later)


def in_the_way(name: str, then: ChildConfig, now: dict[str, Member]) -> bool:
    """Whether somebody of the team, itself included, holds a place beside which this one cannot have its new ones."""
    new = set(then.places) - now[name].holds
    return any(_collide(one, other) for one in new for member in now.values() for other in member.holds)


def _collide(one: Place, other: Place) -> bool:
    return one[1] == other[1] and (one[0] == other[0] or one[0] in EVERY_ADDRESS or other[0] in EVERY_ADDRESS)


def changed(running: ChildConfig, then: ChildConfig) -> list[str]:
    """What a process must be told anew, each in a few words."""
    found = _differences("", running, then, skip=OURS | {"backend", "limits", "options", "settings", "places"})
    found += _differences("limits", running.limits, then.limits)
    if isinstance(running, GatewayConfig) and isinstance(then, GatewayConfig):
        return found + _differences("gateway", running.settings, then.settings)
    assert isinstance(running, SpecialistConfig)
    assert isinstance(then, SpecialistConfig)
    found += _differences("backend", running.backend, then.backend)
    own = _keys("options", running.options, then.options)
    found += [words for words in own if f"backend.{words}" not in found]  # the team's are among them
    return list(dict.fromkeys(found))


def _change(then: Member, now: Member | None) -> Change:
    name = then.config.name
    if now is None:
        return Change(name, "add", [f"port {then.config.port}"])
    told = changed(now.running or now.config, then.config)
    kept = _differences("", now.settings, then.settings, skip=LATER | WHOLE_TEAM)
    if told and now.wanted == "up":
        return Change(name, "restart", told)
    if told:  # stopped or drained by an operator: it has this at its next start
        return Change(name, "live", [*told, *kept])
    if now.has_failed and (not now.is_kept_down or now.settings.restart != then.settings.restart):
        return Change(name, "retry", kept)
    return Change(name, "live", kept) if kept else Change(name, "keep")


def _differences(above: str, before: Struct, after: Struct, skip: frozenset[str] = frozenset()) -> list[str]:
    """The fields that differ, in the words of the file."""
    found: list[str] = []
    for field in msgspec.structs.fields(type(before)):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old == new or field.name in skip:
            continue
        key = f"{above}.{field.name}" if above else SPELLED.get(field.name, field.name)
        if isinstance(old, Struct):
            found += _differences(key, old, new)
        elif isinstance(old, dict):
            found += _keys(key, old, new)
        else:
            found.append(_words(key, field.name, old, new))
    return found


def _keys(above: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [_words(f"{above}.{key}", key, before.get(key), after.get(key)) for key in keys]


def _words(key: str, field: str, old: Any, new: Any) -> str:
    if field != "url_asked_for" and all(_is_shown(field, value) for value in (old, new)):
        return f"{key} {_shown(old)} -> {_shown(new)}"
    return key


def _is_shown(field: str, value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float) or (field in SHOWN and isinstance(value, str))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "default"
    return f"{value:.15g}" if isinstance(value, float) else str(value)
