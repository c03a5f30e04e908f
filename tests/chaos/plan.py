"""Which faults come, to whom, in what order: pure arithmetic of a seed, so that a run can be had again.

A round is either some independent faults on different specialists at the same time, or one fault of the whole fleet. Whoever
was hit longest ago is hit next, since ten seconds of readiness forgive: that is what keeps back-offs out of most figures.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from msgspec import Struct

# How often each kind comes in one deck. QUICK and SLOW hit one specialist each: SLOW ones have to be found out first.
QUICK = {"kill": 7, "segv": 4, "exit 0": 4, "exit 1": 4, "grandchild": 3, "far grandchild": 2}
SLOW = {"stop": 5, "spin": 3, "blocked": 4, "deaf": 2, "descriptors": 2}
# These are faults of the machine or of the whole fleet, one at a time.
FLEET = {
    "several at once": 4,
    "crash loop": 1,
    "disk full": 2,
    "fork fails": 2,
    "clock jumps": 3,
    "supervisor killed": 4,
    "supervisor stopped": 1,
    "suspended": 1,
    "fork server killed": 2,
    "fork server stopped": 1,
    "both killed": 1,
}
# After these another supervisor or fork server is there: the last part of a run goes without, so that leaks can be seen.
REPLACING = frozenset({"supervisor killed", "fork server killed", "fork server stopped", "both killed"})
KINDS = (*QUICK, *SLOW, *FLEET)

AT_A_TIME = 6  # independent faults in one round
SPINS_AT_A_TIME = 1  # each takes a processor for itself
MOST_AT_ONCE = 0.5  # of the team
WITHIN = 0.5  # seconds over which the faults of a round are spread


class Fault(Struct, frozen=True):
    """One fault: what, to whom, how many seconds into its round, and one number from 0 to 1 for what else is random."""

    kind: str
    names: tuple[str, ...]
    after: float
    chance: float


Round = tuple[Fault, ...]


def plan(seed: int, count: int, names: list[str], kinds: frozenset[str], *, each_once: bool = False) -> list[Round]:
    """The rounds of a run, `count` faults in all. `each_once` makes decks with one card of every kind."""
    rng = random.Random(seed)
    waiting = rng.sample(names, len(names))  # who was hit longest ago comes first
    rounds: list[Round] = []
    left = count
    while left > 0:
        is_late = count - left >= count / 2 and not each_once
        allowed = kinds - REPLACING if is_late else kinds
        for kinds_of_round in _deck(rng, allowed, each_once=each_once):
            chosen = kinds_of_round[:left]
            rounds.append(tuple(_fault(rng, kind, waiting, alone=len(kinds_of_round) == 1) for kind in chosen))
            left -= len(chosen)
            if not left:
                break
    return rounds


def _deck(rng: random.Random, kinds: frozenset[str], *, each_once: bool) -> Iterator[list[str]]:
    """Every kind as often as its weight says, cut into rounds, the rounds in random order."""
    rounds: list[list[str]] = [
        [kind] for kind, weight in FLEET.items() if kind in kinds for _ in range(1 if each_once else weight)
    ]
    for table in (QUICK, SLOW):
        cards = [kind for kind, weight in table.items() if kind in kinds for _ in range(1 if each_once else weight)]
        rng.shuffle(cards)
        while cards:
            chosen: list[str] = []
            for kind in list(cards):
                if len(chosen) < AT_A_TIME and (kind != "spin" or chosen.count("spin") < SPINS_AT_A_TIME):
                    chosen.append(kind)
                    cards.remove(kind)
            rounds.append(chosen)
    rng.shuffle(rounds)
    yield from rounds


def _fault(rng: random.Random, kind: str, waiting: list[str], *, alone: bool) -> Fault:
    """A fault on whoever was hit longest ago; those go to the end of the line."""
    how_many = 1
    if kind == "several at once":
        how_many = rng.randint(2, max(2, round(len(waiting) * MOST_AT_ONCE)))
    elif kind in ("disk full", "fork fails"):
        how_many = rng.randint(1, min(3, len(waiting)))
    chosen = tuple(waiting[:how_many])
    waiting[:] = waiting[how_many:] + list(chosen)
    return Fault(kind, chosen, 0.0 if alone else rng.uniform(0, WITHIN), rng.random())
