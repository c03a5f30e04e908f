"""Whether what one source says fits the schema: each key known, each value of its type and in its range.

Pure. Mistakes are collected, never raised: a user wants to see all of them. msgspec's own messages lose the
key inside a dictionary of tables, so every value is converted by itself. Whether the whole makes sense is
`supervisor/sense.py`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from datetime import date, datetime, time
from functools import cache
from math import isfinite
from typing import Any, get_args, get_origin

import msgspec
from msgspec import Struct

from protocol import names
from protocol.settings import Settings
from supervisor.locate import Key, dotted

NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
# `chorus stop all`; the others are what the team's own processes are called in logs and events.
RESERVED = frozenset({"all", "supervisor", "gateway", "forkserver"})


class Source(Struct, frozen=True):
    """Where values come from: a file with the lines of its keys, or (`lines` None) one variable or flag."""

    name: str
    lines: dict[Key, int] | None = None

    def at(self, key: Key) -> str:
        if self.lines is None:
            return self.name
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.name}:{self.lines.get(key, 1)}"

    def mistake(self, key: Key, what: str) -> str:
        """The mistake as one line. A number at the key's end is a place in a list: only for the line."""
        if self.lines is None:
            return f"{self.name}: {what}"
        shown = key[:-1] if key[-1].isdecimal() and len(key) > 1 else key
        return f"{self.at(key)}: {dotted(shown)}: {what}"


class Said(Struct, frozen=True):
    """One value as one source gave it; `spelled` is the key in that source's own spelling."""

    value: Any
    source: Source
    spelled: Key


Leaves = dict[Key, Said]


def read(raw: dict[str, Any], source: Source) -> tuple[Leaves, list[str]]:
    """The values of one source that fit the schema, by canonical key, and what is wrong with the others.

    An empty table (`[specialists.zeus]`) is there as {}: it says that zeus is meant.
    """
    reading = _Reading(source)
    reading.table(raw, Settings, (), ())
    return reading.leaves, reading.mistakes


class _Reading:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.leaves: Leaves = {}
        self.mistakes: list[str] = []

    def table(self, raw: dict[str, Any], schema: type[Struct], key: Key, spelled: Key) -> None:
        types = {one.encode_name: one.type for one in msgspec.structs.fields(schema)}
        for part, value in raw.items():
            if part in types:
                self.value(value, types[part], (*key, part), (*spelled, part))
            else:
                self.wrong((*spelled, part), _unknown(part, key, types))

    def value(self, raw: Any, type_: Any, key: Key, spelled: Key) -> None:
        if get_origin(type_) is dict:
            self.dictionary(raw, get_args(type_)[1], key, spelled)
        elif isinstance(type_, type) and issubclass(type_, Struct):
            if isinstance(raw, dict):
                self.table(raw, type_, key, spelled)
            else:
                self.wrong(spelled, f"expected a table, got {shown(raw)}")
        else:
            self.leaf(raw, type_, key, spelled)

    def dictionary(self, raw: Any, type_: Any, key: Key, spelled: Key) -> None:
        if not isinstance(raw, dict):
            self.wrong(spelled, f"expected a table, got {shown(raw)}")
            return
        is_named = isinstance(type_, type) and issubclass(type_, Struct)
        met: dict[str, str] = {}
        for part, value in raw.items():
            name = names.canonical(part) if is_named else part
            if is_named and (problem := bad_name(part, name, met)):
                self.wrong((*spelled, part), problem)
                continue
            met[name] = part
            if is_named:
                self.leaves[(*key, name)] = Said({}, self.source, (*spelled, part))
            self.value(value, type_, (*key, name), (*spelled, part))

    def leaf(self, raw: Any, type_: Any, key: Key, spelled: Key) -> None:
        try:
            value = msgspec.convert(raw, type_)
        except msgspec.ValidationError:
            self.wrong(spelled, f"expected {_expected(type_)}, got {shown(raw)}")
            return
        if not _is_plain(value):
            what = "a number, a string, true, false or a list of them" if type_ is Any else _expected(type_)
            self.wrong(spelled, f"expected {what}, got {shown(raw)}")
            return
        self.leaves[key] = Said(value, self.source, spelled)

    def wrong(self, spelled: Key, what: str) -> None:
        self.mistakes.append(self.source.mistake(spelled, what))


def shown(value: Any) -> str:
    """A value as it stands in TOML, shortened."""
    if isinstance(value, (date, datetime, time)):
        return value.isoformat()
    if isinstance(value, float):
        return repr(value)
    text = "a table" if isinstance(value, dict) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_plain(value: Any) -> bool:
    """Whether JSON has a word for it: TOML also has dates and infinity, model servers do not."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isfinite(value) if isinstance(value, float) else isinstance(value, (bool, int, str))


def bad_name(spelled: str, name: str, met: Iterable[str]) -> str | None:
    if not NAME.fullmatch(name) or name in RESERVED:
        form = f"a name of a-z, 0-9 and _, a letter first, 32 at most, not one of {', '.join(sorted(RESERVED))}"
        return f"expected {form}, got {shown(spelled)}"
    if name in met:
        return f"{shown(spelled)} is {name}, who is there already"
    return None


def _unknown(part: str, key: Key, types: Iterable[str]) -> str:
    """What to say of a key that is not in the schema: where it belongs, what it is like, or what there is."""
    if elsewhere := [one for one in _homes().get(part, []) if one[:-1] != key]:
        return f'unknown key - did you mean "{dotted(elsewhere[0])}"?'
    if close := difflib.get_close_matches(part.lower().replace("-", "_"), types, n=1):
        return f'unknown key - did you mean "{close[0]}"?'
    return f"unknown key - there is {', '.join(types)}"


@cache
def _homes() -> dict[str, list[Key]]:
    """Each key of the schema by its last part, for those that stand in the wrong table."""
    homes: dict[str, list[Key]] = {}

    def visit(schema: type[Struct], key: Key) -> None:
        for one in msgspec.structs.fields(schema):
            homes.setdefault(one.encode_name, []).append((*key, one.encode_name))
            if isinstance(one.type, type) and issubclass(one.type, Struct):
                visit(one.type, (*key, one.encode_name))

    visit(Settings, ())
    return homes


def _expected(type_: Any) -> str:
    """The type and its limits, in words."""
    from msgspec import inspect

    info = inspect.type_info(type_)
    if isinstance(info, inspect.UnionType):
        info = next(one for one in info.types if not isinstance(one, inspect.NoneType))
    if isinstance(info, inspect.LiteralType):
        return "one of " + ", ".join(f'"{one}"' for one in info.values)
    if isinstance(info, inspect.ListType):
        most = f"at most {info.max_length} " if info.max_length else ""
        return f"a list of {most}{_expected_items(info.item_type)}"
    if isinstance(info, (inspect.IntType, inspect.FloatType)):
        return ("an integer" if isinstance(info, inspect.IntType) else "a number") + _limits(info.ge, info.gt, info.le)
    return "true or false" if isinstance(info, inspect.BoolType) else "a string"


def _expected_items(info: Any) -> str:
    from msgspec import inspect

    return f"integers{_limits(info.ge, info.gt, info.le)}" if isinstance(info, inspect.IntType) else "strings"


def _limits(ge: float | None, gt: float | None, le: float | None) -> str:
    if ge is not None and le is not None:
        return f" {ge:g}-{le}" if ge < 10 else f" {ge}-{le}"
    if gt is not None:
        return f" above {gt:g}"
    return f" of at least {ge}" if ge is not None else ""
