"""One thing that was looked at."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

CheckState = Literal["ok", "warn", "fail"]


class Check(Struct, frozen=True):
    """`name` is stable, for programs; `fact` is what was found, with figures that were measured; `remedy` is what to do.

    A check that is ok may have a remedy too: what would make it better.
    """

    name: str
    state: CheckState
    fact: str
    remedy: str | None = None


def ok(name: str, fact: str, remedy: str | None = None) -> Check:
    return Check(name, "ok", fact, remedy)


def warn(name: str, fact: str, remedy: str | None = None) -> Check:
    return Check(name, "warn", fact, remedy)


def fail(name: str, fact: str, remedy: str | None = None) -> Check:
    return Check(name, "fail", fact, remedy)
