"""Who answers when nobody was named: rules that look at the message, and what of the team is ready. Pure.

The first rule decides whose pattern is found in the message and of whose specialists somebody answers; where no rule does, the
best of the whole team. A pattern is a regular expression (`pattern.py`) that is searched in the first 2,000 characters.

    best          who is ready before who is degraded, then who has the least to do, then who spoke soonest last time
    round-robin   one after the other
    all           everybody at once

Between equals the order decides: the rule's, or the roster's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from protocol import names
from protocol.control import SpecialistStatus
from protocol.shape import Mistake, below, mistakes, shown
from supervisor.team.pattern import LONGEST, BadPattern, Pattern

SEARCHED = 2000  # characters of a message: what it is about stands at its begin, and the rest may be a pasted book
ANSWERING = ("ready", "degraded")  # states in which one can be asked, the better one first
MOST_ATTEMPTS = 10
SILENCE = 60.0  # seconds that each of several may be silent, where the rules do not say

Strategy = Literal["best", "round-robin", "all"]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """Who answers messages in which `pattern` is found. `specialists` are names in any spelling."""

    pattern: Annotated[str, Meta(min_length=1, max_length=LONGEST)]
    specialists: Annotated[list[str], Meta(min_length=1, max_length=256)]
    strategy: Strategy = "best"


class TimeoutSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds that a specialist may be silent before it is given up; null leaves it to the specialist's own limits."""

    default: Seconds | None = None
    per_specialist: dict[str, Seconds] = {}


class RetryPolicy(Struct, frozen=True, forbid_unknown_fields=True):
    """Whether another specialist is asked when one fails before its first token; `max_attempts` counts the first one too."""

    enabled: bool = False
    max_attempts: Annotated[int, Meta(ge=1, le=MOST_ATTEMPTS)] = 3

    @property
    def attempts(self) -> int:
        return self.max_attempts if self.enabled else 1


class Orchestration(Struct, frozen=True, forbid_unknown_fields=True):
    """All the rules, in the order in which they are tried."""

    routing_rules: Annotated[list[Rule], Meta(max_length=64)] = []
    timeout_settings: TimeoutSettings = TimeoutSettings()
    retry_policy: RetryPolicy = RetryPolicy()

    @property
    def timeouts(self) -> dict[str, float]:
        """How long those may be silent of whom that is said, by their names."""
        return {names.canonical(one): seconds for one, seconds in self.timeout_settings.per_specialist.items()}

    def timeout_of(self, name: str) -> float | None:
        """How long this specialist may be silent."""
        return self.timeouts.get(names.canonical(name), self.timeout_settings.default)


class Choice(Struct, frozen=True):
    """Who is to answer: one, or with the strategy `all` everybody of `chosen`; and why, as a sentence.

    `others` may answer in the place of one, best first. `rule` is the number of the rule that decided, None without one.
    """

    chosen: list[str]
    others: list[str]
    strategy: Strategy
    why: str
    rule: int | None = None


class BadRules(ValueError):
    """Rules that cannot be; with everything that is wrong with them."""

    def __init__(self, wrong: list[Mistake]) -> None:
        super().__init__("; ".join(one.sentence for one in wrong))
        self.mistakes = wrong


def read(value: Any, known: Collection[str]) -> Orchestration:
    """Decoded JSON as rules for a team of these names. Raises BadRules with every mistake."""
    wrong = mistakes(value, Orchestration)
    if isinstance(value, dict):
        wrong += _senseless(value, known)
    if wrong:
        raise BadRules(wrong)
    return msgspec.convert(value, Orchestration)


def choose(
    rules: Orchestration, message: str, team: Sequence[SpecialistStatus], turns: Mapping[str, int] | None = None
) -> Choice | None:
    """Who answers a message; None where nobody can. `turns` is how often each pattern has had somebody chosen before."""
    missed: list[str] = []
    for number, rule in enumerate(rules.routing_rules):
        if not pattern_of(rule.pattern).found_in(message[:SEARCHED], is_whole=len(message) <= SEARCHED):
            continue
        who = f"rule {number + 1} ({rule.pattern})"
        if ranked := _ranked(_named(rule, team)):
            return _by_rule(rule, ranked, (turns or {}).get(rule.pattern, 0), number, " and ".join([*missed, who]))
        missed.append(f"nobody of {who} answers")
    if not (ranked := _ranked(team)):
        return None
    first, *others = (one.name for one in ranked)
    why = " and ".join(missed) if missed else "no rule is about it" if rules.routing_rules else "there are no rules"
    return Choice([first], others, "best", f"{why}: the best of all who answer")


def _by_rule(rule: Rule, ranked: list[SpecialistStatus], turn: int, number: int, who: str) -> Choice:
    best = [one.name for one in ranked]
    if rule.strategy == "all":
        return Choice(_in_order(rule, best), [], "all", f"{who}: all who answer", number)
    if rule.strategy == "best":
        return Choice(best[:1], best[1:], "best", f"{who}: the best of those who answer", number)
    able = _in_order(rule, [one.name for one in ranked if one.state == ranked[0].state])
    first = able[turn % len(able)]
    return Choice([first], [name for name in best if name != first], "round-robin", f"{who}: it is its turn", number)


def _named(rule: Rule, team: Sequence[SpecialistStatus]) -> list[SpecialistStatus]:
    """Those of the team whom a rule names, in the rule's order."""
    there = {one.name: one for one in team}
    wanted = dict.fromkeys(map(names.canonical, rule.specialists))
    return [there[name] for name in wanted if name in there]


def _in_order(rule: Rule, able: Collection[str]) -> list[str]:
    return [name for name in dict.fromkeys(map(names.canonical, rule.specialists)) if name in able]


def _ranked(team: Sequence[SpecialistStatus]) -> list[SpecialistStatus]:
    """Those who answer, best first. Who was never asked has no figure, and comes behind those who have one."""

    def worth(one: SpecialistStatus) -> tuple[int, int, float]:
        soonest = one.first_token_ms if one.first_token_ms is not None else math.inf
        return ANSWERING.index(one.state), one.in_flight + one.queued, soonest

    return sorted((one for one in team if one.state in ANSWERING), key=worth)


@lru_cache(maxsize=256)
def pattern_of(text: str) -> Pattern:
    """A pattern, made once. Raises BadPattern."""
    return Pattern(text)


# -- what types do not say ---------------------------------------------------------------------------------------------


def _senseless(value: dict[str, Any], known: Collection[str]) -> list[Mistake]:
    """What is of the right type and still wrong: patterns that are none, names that are nobody's."""
    wrong: list[Mistake] = []
    rules = value.get("routing_rules")
    for number, rule in enumerate(rules if isinstance(rules, list) else []):
        if not isinstance(rule, dict):
            continue
        path = below("routing_rules", number)
        wrong += _bad_pattern(rule.get("pattern"), below(path, "pattern"))
        specialists = rule.get("specialists")
        if isinstance(specialists, list):
            told = [(one, below(below(path, "specialists"), at)) for at, one in enumerate(specialists)]
            wrong += _strangers(told, known)
    timeouts = value.get("timeout_settings")
    own = timeouts.get("per_specialist") if isinstance(timeouts, dict) else None
    if isinstance(own, dict):
        wrong += _strangers([(one, below("timeout_settings.per_specialist", one)) for one in own], known)
    return wrong


def _bad_pattern(text: Any, path: str) -> list[Mistake]:
    if not isinstance(text, str) or len(text) > LONGEST:
        return []  # said already
    try:
        pattern_of(text)
    except BadPattern as error:
        return [Mistake(path, f"a regular expression ({error})", shown(text))]
    return []


def _strangers(told: Sequence[tuple[Any, str]], known: Collection[str]) -> list[Mistake]:
    """Names that are nobody's, and a second spelling of the same one."""
    wrong, met = [], set()
    for one, path in told:
        if not isinstance(one, str):
            continue  # said already
        name = names.canonical(one)
        if name not in known:
            close = names.near(one[:LONGEST], known)
            hint = f"did you mean {' or '.join(close)}?" if close else f"the team is {', '.join(known)}"
            wrong.append(Mistake(path, f"the name of a specialist ({hint})", shown(one)))
        elif name in met:
            wrong.append(Mistake(path, "each specialist once", shown(one)))
        met.add(name)
    return wrong
