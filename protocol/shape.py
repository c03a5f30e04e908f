"""All that is wrong with a value from outside, each mistake with its path. Pure.

A decoder stops at the first mistake. Whoever sends a document that people write by hand is better told all of them at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Struct

LONGEST_SHOWN = 60  # characters of a value that is repeated

_GOT = re.compile(r", got `\w+`.*")


class Mistake(Struct, frozen=True):
    """One thing that is wrong: where (`routing_rules[0].strategy`), what was expected there, and what was found."""

    path: str
    expected: str
    got: str

    @property
    def sentence(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return f"{where}expected {self.expected}, got {self.got}"


def mistakes(value: Any, shape: Any, path: str = "") -> list[Mistake]:
    """What keeps a decoded JSON value from being of this type; nothing where it is.

    Looks into Structs, lists and dictionaries; anything else is one value, right or wrong.
    """
    plain, *limits = get_args(shape) if get_origin(shape) is Annotated else [shape]
    if isinstance(plain, type) and issubclass(plain, Struct):
        return _of_struct(value, plain, path)
    container = get_origin(plain)
    if container not in (list, dict):
        return _against(value, shape, path)
    if wrong := _against(value, Annotated[(container, *limits)] if limits else container, path):
        return wrong
    item = get_args(plain)[-1]
    inner = enumerate(value) if container is list else value.items()
    return [wrong for name, one in inner for wrong in mistakes(one, item, below(path, name))]


def below(path: str, name: str | int) -> str:
    """The path of what a list or an object has under this name."""
    if isinstance(name, int):
        return f"{path}[{name}]"
    return f"{path}.{name}" if path else name


def shown(value: Any) -> str:
    """A value as it stands in JSON, shortened; of what may be large, only what it is."""
    if isinstance(value, dict | list):
        return "object" if isinstance(value, dict) else f"array of {len(value)}"
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"


def _of_struct(value: Any, shape: type[Struct], path: str) -> list[Mistake]:
    if not isinstance(value, dict):
        return [Mistake(path, "object", shown(value))]
    fields = {one.encode_name: one for one in msgspec.structs.fields(shape)}
    wrong = [
        Mistake(below(path, name), "a value", "nothing")
        for name, one in fields.items()
        if one.required and name not in value
    ]
    for name, one in value.items():
        if name in fields:
            wrong += mistakes(one, fields[name].type, below(path, name))
        elif shape.__struct_config__.forbid_unknown_fields:
            wrong.append(Mistake(below(path, name), _known(name, fields), "a name that is not known"))
    return wrong


def _known(name: str, fields: Iterable[str]) -> str:
    close = difflib.get_close_matches(name[:LONGEST_SHOWN], list(fields), n=1)
    return close[0] if close else f"one of {', '.join(fields)}"


def _against(value: Any, shape: Any, path: str) -> list[Mistake]:
    try:
        msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        return [Mistake(path, _expected(str(error), shape), shown(value))]
    return []


def _expected(said: str, shape: Any) -> str:
    """The sentence of msgspec without what was found, which is shown as a value."""
    if get_origin(shape) is Literal:
        return "one of " + ", ".join(f'"{one}"' for one in get_args(shape))
    return _GOT.sub("", said).replace("`", "").removeprefix("Expected ")
