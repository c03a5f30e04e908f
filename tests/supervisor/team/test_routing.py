"""Who answers when nobody was named."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from protocol.control import SpecialistStatus
from protocol.names import ROSTER
from protocol.shape import Mistake
from supervisor.team.routing import SEARCHED, BadRules, Choice, Orchestration, RetryPolicy, choose, read

STATES = ("ready", "degraded", "starting", "hung", "backing_off", "failed", "stopping", "draining", "stopped")


def one(name: str, state: str = "ready", *, load: int = 0, soonest: float | None = None) -> SpecialistStatus:
    return SpecialistStatus(
        name=name,
        ai_id=f"{name}-ci",
        host="127.0.0.1",
        port=1,
        state=state,
        wanted="up",
        in_flight=load,
        first_token_ms=soonest,
    )


def rules(*said: tuple[str, list[str], str]) -> Orchestration:
    told = [{"pattern": pattern, "specialists": names, "strategy": strategy} for pattern, names, strategy in said]
    return read({"routing_rules": told}, ROSTER)


def chosen(rules: Orchestration, message: str, team: list[SpecialistStatus], turn: int = 0) -> Choice:
    choice = choose(rules, message, team, {rule.pattern: turn for rule in rules.routing_rules})
    assert choice is not None
    return choice


# -- without a rule ----------------------------------------------------------------------------------------------------


def test_the_best_of_all_is_ready_then_idle_then_fast_then_first() -> None:
    """Every pair of states, loads and figures: who is better by the first difference is chosen, wherever it stands."""
    kinds = list(itertools.product(("ready", "degraded"), (0, 1, 5), (3.0, 90.0, None)))
    for better, worse in itertools.combinations(kinds, 2):
        for order in (0, 1):
            pair = [one(name, kind[0], load=kind[1], soonest=kind[2]) for name, kind in (("a", better), ("b", worse))]
            choice = chosen(Orchestration(), "hello", pair[:: 1 - 2 * order])
            assert (choice.chosen, choice.others, choice.rule) == (["a"], ["b"], None), (better, worse)


def test_between_equals_the_roster_decides() -> None:
    assert chosen(Orchestration(), "x", [one("b"), one("a"), one("c")]).chosen == ["b"]


def test_queued_questions_count_like_those_under_way() -> None:
    waiting = msgspec.structs.replace(one("a"), queued=2)
    assert chosen(Orchestration(), "x", [waiting, one("b", load=1)]).chosen == ["b"]


@pytest.mark.parametrize("state", STATES[2:])
def test_nobody_who_does_not_answer_is_chosen(state: str) -> None:
    assert choose(Orchestration(), "x", [one("apollo", state)]) is None
    by_rule = rules(("x", ["apollo"], "best"), ("x", ["apollo"], "all"), ("x", ["apollo"], "round-robin"))
    assert choose(by_rule, "x", [one("apollo", state)]) is None
    assert choose(by_rule, "x", []) is None


def test_why_is_a_sentence() -> None:
    team = [one("apollo")]
    assert chosen(Orchestration(), "x", team).why == "there are no rules: the best of all who answer"
    assert chosen(rules(("y", ["apollo"], "best")), "x", team).why == "no rule is about it: the best of all who answer"
    assert chosen(rules(("x", ["apollo"], "best")), "x", team).why == "rule 1 (x): the best of those who answer"
    away = chosen(rules(("x", ["metis"], "best")), "x", team).why
    assert away == "nobody of rule 1 (x) answers: the best of all who answer"


# -- rules -------------------------------------------------------------------------------------------------------------


def test_the_first_rule_that_is_about_it_decides() -> None:
    team = [one("apollo"), one("metis"), one("athena")]
    plan = rules(("plan", ["metis-ai"], "best"), ("pla", ["Athena"], "best"), (".", ["apollo"], "best"))
    for message, name, rule in [
        ("PLANNING a week", "metis", 0),
        ("a place", "athena", 1),
        ("something else", "apollo", 2),
    ]:
        choice = chosen(plan, message, team)
        assert (choice.chosen, choice.rule) == ([name], rule)


def test_a_rule_of_which_nobody_answers_is_passed_over() -> None:
    team = [one("apollo"), one("metis", "failed"), one("athena", "degraded")]
    choice = chosen(rules(("x", ["metis"], "all"), ("x", ["athena"], "best")), "x", team)
    assert (choice.chosen, choice.rule) == (["athena"], 1)
    assert choice.why == "nobody of rule 1 (x) answers and rule 2 (x): the best of those who answer"


def test_the_best_is_chosen_among_those_of_the_rule_alone() -> None:
    team = [one("apollo"), one("metis", load=3), one("athena", load=2)]
    choice = chosen(rules(("x", ["metis", "athena"], "best")), "x", team)
    assert (choice.chosen, choice.others) == (["athena"], ["metis"])


def test_in_turns_everybody_ready_is_asked_in_the_order_of_the_rule() -> None:
    team = [one("apollo", load=9), one("metis"), one("athena", "degraded"), one("penia", "failed")]
    by_turns = rules(("x", ["penia", "athena", "apollo", "metis"], "round-robin"))
    order = [chosen(by_turns, "x", team, turn).chosen[0] for turn in range(5)]
    assert order == ["apollo", "metis", "apollo", "metis", "apollo"]
    assert chosen(by_turns, "x", team, 0).others == ["metis", "athena"]
    assert chosen(by_turns, "x", [one("athena", "degraded")], 7).chosen == ["athena"]


def test_all_are_those_who_answer_in_the_order_of_the_rule() -> None:
    team = [one("apollo", load=9), one("metis"), one("athena", "degraded"), one("penia", "failed")]
    choice = chosen(rules(("x", ["penia", "athena", "apollo"], "all")), "x", team)
    assert (choice.chosen, choice.others, choice.strategy) == (["athena", "apollo"], [], "all")


def test_only_the_begin_of_a_message_is_searched() -> None:
    team = [one("apollo"), one("metis")]
    plan = rules(("plan", ["metis"], "best"), ("end$", ["metis"], "best"))
    assert chosen(plan, "x" * (SEARCHED - 4) + "plan", team).chosen == ["metis"]
    assert chosen(plan, "x" * SEARCHED + "plan", team).chosen == ["apollo"]
    assert chosen(plan, "x" * (SEARCHED - 3) + "end", team).chosen == ["metis"]
    assert chosen(plan, "x" * (SEARCHED - 3) + "end" + "x", team).chosen == ["apollo"]


# -- reading -----------------------------------------------------------------------------------------------------------


def test_the_originals_schema_is_read() -> None:
    told = {
        "routing_rules": [{"pattern": "planning", "specialists": ["prometheus-ai", "metis-ai"], "strategy": "all"}],
        "timeout_settings": {"default": 10.0, "per_specialist": {"tekton-ci": 30}},
        "retry_policy": {"enabled": True, "max_attempts": 2},
    }
    rules = read(told, ROSTER)
    assert msgspec.to_builtins(rules) == told
    assert [rules.timeout_of(name) for name in ("apollo", "tekton_core", "Tekton-AI")] == [10.0, 30.0, 30.0]
    assert rules.retry_policy.attempts == 2
    assert RetryPolicy(enabled=False, max_attempts=5).attempts == 1
    assert read({}, ROSTER) == Orchestration()


def test_all_mistakes_are_told_with_their_paths() -> None:
    told: dict[str, Any] = {
        "routing_rules": [
            {"pattern": "(", "specialists": ["apolo", "metis", "metis-ai", 3], "strategy": "fastest"},
            {"specialists": []},
            7,
        ],
        "timeout_settings": {"default": 0, "per_specialist": {"zeus": 1, "apollo": "soon"}},
        "retry_policy": {"max_attempts": 99, "retries": 1},
        "routing_rule": [],
    }
    with pytest.raises(BadRules) as refused:
        read(told, ["apollo", "metis"])
    assert {wrong.path: wrong.sentence.partition(": ")[2] for wrong in refused.value.mistakes} == {
        "routing_rules[0].pattern": 'expected a regular expression (a ( without its ), at character 1), got "("',
        "routing_rules[0].specialists[0]": 'expected the name of a specialist (did you mean apollo?), got "apolo"',
        "routing_rules[0].specialists[2]": 'expected each specialist once, got "metis-ai"',
        "routing_rules[0].specialists[3]": "expected str, got 3",
        "routing_rules[0].strategy": 'expected one of "best", "round-robin", "all", got "fastest"',
        "routing_rules[1].pattern": "expected a value, got nothing",
        "routing_rules[1].specialists": "expected array of length >= 1, got array of 0",
        "routing_rules[2]": "expected object, got 7",
        "timeout_settings.default": "expected float > 0.0, got 0",
        "timeout_settings.per_specialist.zeus": (
            'expected the name of a specialist (the team is apollo, metis), got "zeus"'
        ),
        "timeout_settings.per_specialist.apollo": 'expected float, got "soon"',
        "retry_policy.max_attempts": "expected int <= 10, got 99",
        "retry_policy.retries": "expected one of enabled, max_attempts, got a name that is not known",
        "routing_rule": "expected routing_rules, got a name that is not known",
    }


@pytest.mark.parametrize("value", [None, [], "rules", 3])
def test_what_is_no_object_is_one_mistake(value: Any) -> None:
    with pytest.raises(BadRules) as refused:
        read(value, ROSTER)
    assert [wrong.expected for wrong in refused.value.mistakes] == ["object"]


def test_mistakes_know_their_place() -> None:
    with pytest.raises(BadRules) as refused:
        read({"retry_policy": {"enabled": 1}}, ROSTER)
    assert refused.value.mistakes == [Mistake("retry_policy.enabled", "bool", "1")]
