"""The report of a run, as Markdown: conditions, faults and recoveries, clients, flatness, and every broken promise."""

from __future__ import annotations

import math
from collections import Counter

from chaos.load import KINDS as CLIENTS
from chaos.plan import KINDS
from chaos.run import Result, machine_said


def markdown(result: Result) -> str:
    """The whole report; of a run that ended early, what there is of it."""
    parts = [_conditions(result), _faults(result), _clients(result), _flatness(result), _breaches(result)]
    return "\n\n".join(parts) + "\n"


def _conditions(result: Result) -> str:
    said = result.conditions
    how = said.settings
    broken = len(result.stage.breaches) if result.stage else "no team, so no"
    call = f"scripts/chaos {said.count} --seed {said.seed} --team {said.team}" + (" --brisk" if said.brisk else "")
    supervision = (
        f"health_period {how.health_period:g} s, hung_after {how.hung_after:g} s, intensity {how.intensity} in"
        f" {how.period:g} s, restart = {how.restart}" + ("" if said.brisk else " (the defaults)")
    )
    done = f"{sum(result.done.values())} faults in {result.rounds} rounds and {result.seconds / 60:.1f} minutes"
    lines = [
        "# A team under chaos",
        "",
        f"`{call}`: {done}, {broken} broken promises.",
        "",
        f"- Machine: {machine_said()}.",
        f"- Team: {said.team} specialists on the builtin backend, and the gateway; their clients run on the same machine.",
        f"- Supervision: {supervision}. Whoever failed is hit again after ten seconds of readiness, which forgive.",
        f"- Supervisors one after the other: {result.lives}; they told {result.changes} changes of state without a hole.",
    ]
    if result.stage and result.stage.unknown:
        lines.append(
            f"- Ends of processes without a parent of ours, of which nobody knows how: {result.stage.unknown}."
        )
    if not said.brisk:
        lines.append(
            "- The second half goes without faults that replace the supervisor or the fork server: leaks would show."
        )
    lines += [f"- Left out: {kind}, since {why}." for kind, why in result.left_out.items()]
    return "\n".join(lines)


FAULTS = """## Faults

Recovery is from the fault to an answer of the new process; for a supervisor or a fork server, until there is a new one. A fault
that may cost nobody anything has none.

| fault | times | p50 | p99 | longest |
|---|---:|---:|---:|---:|"""


def _faults(result: Result) -> str:
    lines = [FAULTS]
    for kind in KINDS:
        if times := result.done.get(kind):
            took = sorted(result.took.get(kind, []))
            figures = [_seconds(quantile(took, part)) for part in (0.5, 0.99, 1.0)] if took else ["–"] * 3
            lines.append(f"| {kind} | {times} | {' | '.join(figures)} |")
    return "\n".join(lines)


CLIENTS_TOLD = """## Clients

{asked} questions; connections refused: {refused}; unanswered: {late}; the longest wait for a line was {longest:.1f} s. `cut` is
the end of the very process that had taken the question, by our hand; any other is a broken promise.
"""


def _clients(result: Result) -> str:
    if result.load is None:
        return "## Clients\n\nnone"
    counts = result.load.counts
    whats = sorted({what for _, what in counts}, key=lambda what: (what != "answered", what))
    total = Counter[str]()
    for (_, what), times in counts.items():
        total[what] += times
    told = CLIENTS_TOLD.format(
        asked=total.total(), refused=total["refused"], late=total["late"], longest=result.load.longest
    )
    lines = [
        told,
        f"| client | {' | '.join(whats)} |",
        f"|---|{'---:|' * len(whats)}",
        *(f"| {kind} | {' | '.join(str(counts[kind, what]) for what in whats)} |" for kind in CLIENTS),
    ]
    return "\n".join(lines)


def _flatness(result: Result) -> str:
    lines = [
        "## Descriptors and memory",
        "",
        "After each round; of the process that lived through most faults.",
        "",
        "| process | lives | faults in the longest | descriptors first, last, most | resident KiB first, last, most |",
        "|---|---:|---:|---:|---:|",
    ]
    for who in ("supervisor", "fork server"):
        life = result.flatness.longest_life(who)
        if not life:
            continue
        lives = len({one.pid for one in result.flatness.samples if one.who == who})
        open_ = [one.descriptors for one in life]
        held = [one.resident >> 10 for one in life]
        lines.append(
            f"| {who} | {lives} | {life[-1].faults - life[0].faults} | {open_[0]}, {open_[-1]}, {max(open_)} |"
            f" {held[0]}, {held[-1]}, {max(held)} |"
        )
    return "\n".join(lines)


def _breaches(result: Result) -> str:
    breaches = result.stage.breaches if result.stage else []
    if not breaches:
        return "## Broken promises\n\nNone."
    lines = [
        f"- {one.at:.2f} s, {one.during}: {one.sentence.strip()}" + (f" ({one.times} times)" if one.times > 1 else "")
        for one in breaches
    ]
    return "\n".join(["## Broken promises", "", *lines])


def quantile(ordered: list[float], part: float) -> float:
    """The smallest value that is not below this part of them."""
    return ordered[max(0, math.ceil(len(ordered) * part) - 1)]


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"
