"""Who is who: the roster, the ports, and every spelling of a name that people use."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

from protocol.errors import NotFound

# The port of a specialist is port_base + its offset. The table is the original's: its clients have these ports built in.
OFFSETS: dict[str, int] = {
    "engram": 0,
    "hermes": 1,
    "ergon": 2,
    "rhetor": 3,
    "terma": 4,
    "athena": 5,
    "prometheus": 6,
    "harmonia": 7,
    "telos": 8,
    "synthesis": 9,
    "tekton_core": 10,
    "metis": 11,
    "apollo": 12,
    "penia": 13,
    "sophia": 14,
    "noesis": 15,
    "numa": 16,
    "hephaestus": 80,
}
ROSTER: tuple[str, ...] = tuple(OFFSETS)
FIRST_FREE_OFFSET = 100  # names outside the table are given ports from here upward

GATEWAY = "gateway"  # the process that speaks HTTP is called so; it is no specialist

ALIASES = {"tekton": "tekton_core", "budget": "penia"}
SUFFIXES = ("_ai", "_ci")


def canonical(name: str) -> str:
    """The one spelling of a name: `Apollo-AI` is `apollo`, `tekton-core` is `tekton_core`, `budget` is `penia`."""
    plain = name.strip().lower().replace("-", "_")
    while plain.endswith(SUFFIXES):
        plain = plain[:-3]
    return ALIASES.get(plain, plain)


def ai_id(name: str) -> str:
    """What a specialist calls itself on the wire."""
    return f"{canonical(name)}-ci"


def specialist_id(name: str) -> str:
    """What the gateway calls a specialist where the caller gave no spelling."""
    return f"{canonical(name)}-ai"


def spellings(name: str) -> tuple[str, ...]:
    """The aliases that mean this canonical name, for lists of what a user may type."""
    return tuple(alias for alias, meant in ALIASES.items() if meant == name)


def near(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names closest to a misspelt one, best first."""
    names = list(known)
    candidates = names + [alias for one in names for alias in spellings(one)]
    found = difflib.get_close_matches(canonical(name), candidates, n=count, cutoff=0.6)
    return list(dict.fromkeys(canonical(one) for one in found))


def chosen(asked: Sequence[str] | None, known: Sequence[str], also: Sequence[str] = ()) -> list[str]:
    """Names in any spelling, globs and `all` into known names, in their order; None is all.

    `also` are known too, but only by their names: neither a glob nor `all` means them. Raises NotFound with the nearest names
    for one that is nobody's.
    """
    found: set[str] = set()
    for one in ["all"] if asked is None else asked:
        name = canonical(one)
        matching = list(known) if name == "all" else [name] if name in also else fnmatch.filter(known, name)
        if not matching and name != "all":
            close = near(one, [*known, *also])
            hint = f"did you mean {' or '.join(close)}?" if close else f"the team is {', '.join(known)}"
            raise NotFound(f"there is no specialist {one!r}: {hint}")
        found.update(matching)
    return [name for name in [*known, *also] if name in found]
