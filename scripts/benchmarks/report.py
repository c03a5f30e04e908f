"""Figures as Markdown, and their place in a file: between `<!-- NAME -->` and `<!-- end of NAME -->`."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import crowd, fleet, gateway
from benchmarks.instruments import percentile
from benchmarks.peers import VERSIONS
from benchmarks.relays import VERSIONS as RELAYS


def put(path: Path, name: str, text: str) -> None:
    """Replaces what stands in a file's place of that name; exits where the file has none."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = path.read_text().partition(begin)
    _old, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{path} has no place for this: put a line {begin} and a line {end} into it")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def of_fleet(figures: Sequence[fleet.Figures], losses: Sequence[fleet.Loss], absent: str | None) -> str:
    """All tables of a fleet run."""
    measured = [one for one in figures if one.answers]
    trouble = [f"- {one.label}: {one.trouble}" for one in figures if one.trouble]
    if absent is not None:
        trouble.append(
            f"- supervisord {VERSIONS['supervisor']} and circus {VERSIONS['circus']} were not measured: {absent}"
        )
    parts = [
        conditions([load for one in figures for load in one.loads]),
        "### kill -9 of a child until a new process answers\n\n" + _kills(measured),
        "### Start and stop of eighteen\n\n" + _starts(measured),
        "### At rest\n\n" + _rest(measured),
        "### kill -9 of what keeps the children\n\n" + _losses(losses),
        "### Not measured\n\n" + "\n".join(trouble) if trouble else "",
    ]
    return "\n\n".join(part for part in parts if part)


def of_crowd(figures: crowd.Figures) -> str:
    head = conditions(figures.loads)
    return f"{head}\n\n" + table([f"{figures.size} specialists", "measured"], crowd.rows(figures))


def of_gateway(report: gateway.Report) -> str:
    """Both tables of a gateway run."""
    parts = [conditions(report.loads), _relays(report)]
    if report.absent is not None:
        wanted = ", ".join(f"{name} {version}" for name, version in RELAYS.items())
        parts.append(f"Not measured: {wanted}: {report.absent}")
    return "\n\n".join([*parts, _crowds(report)])


def conditions(loads: Sequence[float]) -> str:
    """When and on what machine. The load says how far the figures can be trusted."""
    now = datetime.datetime.now(datetime.UTC)
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    return (
        f"Measured {now:%Y-%m-%d %H:%M} UTC on {os.cpu_count()} cores ({_processor()}), {system}, "
        f"Python {platform.python_version()}; load of the machine {min(loads):.2f} to {max(loads):.2f}."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _kills(figures: Sequence[fleet.Figures]) -> str:
    head = ["", "kills", "p50", "p99", "slowest", "clients turned away", "a bare child starts in (n)", "load"]
    rows = [
        [
            f"{one.label} ({one.remark})",
            str(len(one.answers)),
            *(_ms(percentile(one.answers, share)) for share in (0.5, 0.99, 1)),
            f"{one.turned_away} of {len(one.answers)}",
            f"{_spread(one.bare)} ({len(one.bare)})",
            f"{min(one.loads):.1f} to {max(one.loads):.1f}",
        ]
        for one in figures
    ]
    return table(head, rows)


def _starts(figures: Sequence[fleet.Figures]) -> str:
    head = ["", "start until 18 answer", "stop until nothing is left", "n"]
    return table(head, [[one.label, _spread(one.starts), _spread(one.stops), str(len(one.starts))] for one in figures])


def _rest(figures: Sequence[fleet.Figures]) -> str:
    head = [
        "",
        "processor, supervisor alone",
        "processor, everything",
        "memory, supervisor alone",
        "memory, everything",
    ]
    return table(
        head,
        [
            [
                one.label,
                *(f"{statistics.median(use) * 100:.2f} %" for use in (one.own_cpu, one.all_cpu)),
                *(f"{statistics.median(size):.1f} MiB" for size in (one.own_pss, one.all_pss)),
            ]
            for one in figures
        ],
    )


def _losses(losses: Sequence[fleet.Loss]) -> str:
    head = [
        "killed", "children alive", "a child killed now comes back", "after it came back", "port taken",
        "what it says", "a child killed then comes back", "by hand", "answering in the end", "left by its end",
    ]  # fmt: skip
    rows = []
    for one in losses:
        others = one.children - one.kept - one.new
        rows.append(
            [
                f"{one.label}: {one.killed}",
                f"{one.alive} of {one.children}",
                _yes(one.restarted_without),
                f"{one.kept} the same, {one.new} new, {others} silent",
                f"{one.in_use} times",
                one.account,
                _yes(one.restarted_after),
                ", ".join(one.by_hand) or "nothing",
                f"{one.answering} of {one.children}",
                str(one.left),
            ]
        )
    return table(head, rows)


def _relays(report: gateway.Report) -> str:
    """What is measured in lines, and who in columns."""
    direct, relays = report.direct, report.relays
    least = percentile(direct, 0.5)

    def line(what: str, bare: str, told: Callable[[gateway.Figures], str], target: str = "") -> list[str]:
        return [what, *(told(one) for one in relays), bare, target]

    def first(share: float) -> list[str]:
        name = f"first token, p{share * 100:.0f}"
        return line(name, _ms(percentile(direct, share), 2), lambda one: _ms(percentile(one.firsts, share), 2))

    rows = [
        first(0.5),
        first(0.99),
        line("added before the first token, p50", "", lambda one: _ms(percentile(one.firsts, 0.5) - least, 2), "<= 1 ms"),
        line("events a second, one stream", "", lambda one: f"{one.one:,.0f}"),
        line("processor time of such an event", "", lambda one: _us(one.one_cpu)),
        line("events a second, fifty streams", "", lambda one: f"{one.fifty:,.0f}"),
        line("processor time of such an event", "", lambda one: _us(one.fifty_cpu)),
        line(
            f"memory of a stream that waits (of {gateway.IDLE})", "",
            lambda one: f"{(one.waiting - one.idle) * 1024 / gateway.IDLE:.1f} KiB", "<= 30 KiB",
        ),
        line(
            "memory, idle, with these, and after all", "",
            lambda one: f"{one.idle:.0f}, {one.waiting:.0f}, {one.after:.0f} MiB",
        ),
    ]  # fmt: skip
    if all(one.crowd for one in relays):
        name = f"{gateway.ALONE} streams at {gateway.RATE} tokens a second: "
        crowds = [one.crowd for one in relays if one.crowd]
        rows += [
            [name + "delay, p50", *(_ms(one.p50) for one in crowds), "", ""],
            [name + "delay, p99", *(_ms(one.p99) for one in crowds), "", "< 100 ms"],
            [name + "tokens lost", *(f"{one.lost} of {one.tokens + one.lost}" for one in crowds), "", "0"],
            [name + "use of a core", *(f"{one.use * 100:.0f} %" for one in crowds), "", ""],
            [name + "processor time of an event", *(_us(one.cpu) for one in crowds), "", ""],
        ]
    return table(["", *(one.title for one in relays), "asked directly", "target"], rows)


def _crowds(report: gateway.Report) -> str:
    """The gateway by itself: end to end, and beside those who never read."""
    rows = []
    if report.whole is not None:
        rows.append([f"{gateway.END_TO_END} streams, from the model server to the reader", *_crowd(report.whole)])
    if report.never is not None:
        rows += [
            [f"{gateway.BESIDE} streams", *_crowd(report.never.before)],
            [f"{gateway.BESIDE} streams beside {gateway.NEVER} clients that never read", *_crowd(report.never.beside)],
        ]
    head = [f"at {gateway.RATE} tokens a second", "delay, p50", "p99", "slowest", "lost", "gateway's use of a core"]
    parts = [table(head, rows)]
    if report.never is not None:
        never = report.never
        parts.append(
            f"Of the {gateway.NEVER} that never read, {never.cut} were cut off, with their answers at the specialist. "
            f"Memory of the gateway before, and the most meanwhile: {never.idle:.0f} and {never.highest:.0f} MiB."
        )
    return "\n\n".join(parts)


def _crowd(crowd: gateway.Crowd) -> list[str]:
    delays = [_ms(seconds) for seconds in (crowd.p50, crowd.p99, crowd.slowest)]
    return [*delays, f"{crowd.lost} of {crowd.tokens + crowd.lost}", f"{crowd.use * 100:.0f} %"]


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs"


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _ms(seconds: float, digits: int = 1) -> str:
    return f"{seconds * 1000:.{digits}f} ms"


def _spread(seconds: Sequence[float]) -> str:
    """Median (least to most)."""
    if not seconds:
        return "not measured"
    middle, least, most = (
        f"{figure * 1000:.0f}" for figure in (statistics.median(seconds), min(seconds), max(seconds))
    )
    return f"{middle} ms ({least} to {most})"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"
