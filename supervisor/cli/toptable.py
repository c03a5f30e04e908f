"""What `chorus top` shows, as lines: a head, a row for each specialist, and the keys. Pure: figures and a size in, text out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import click
from msgspec import Struct

from protocol.control import AS_ASKED, DISABLED, KeptStatus, SpecialistStatus, StatusReport
from supervisor.cli import look
from supervisor.cli.meter import Usage

UP = ("ready", "degraded")
HISTORY = 60  # looks that the little curves show …
PER_BAR = 3  # … so many in one bar
BARS = " ▁▂▃▄▅▆▇█"
FULL_BAR_AT_LEAST = 5.0  # percent: a team that idles is not to look busy
BUSY_CPU = 50.0  # percent of a processor from which on the figure is coloured
SILENT_AFTER = 3.0  # seconds without an answer of the supervisor that are worth a word
LEAST_REMARKS = 24  # columns: in less room a remark says nothing


class Sample(Struct, frozen=True):
    """The team at one moment: what its supervisor says and what was measured. `at` is a Unix time.

    `cpu` has the last figures of each specialist, oldest first; `together` is the memory of all processes.
    """

    at: float
    report: StatusReport
    usage: dict[int, Usage]
    cpu: Mapping[str, Sequence[float]] = {}
    together: int | None = None


class View(Struct):
    """How somebody looks at it: sorted by what, from which row on, and with what colours."""

    order: str = "a"
    reverse: bool = False
    first: int = 0
    painted: bool = True
    curves: bool = True  # the terminal can show them


class Row(Struct, frozen=True):
    """One specialist with its place in the roster, at a Unix time."""

    at: float
    place: int
    status: SpecialistStatus
    usage: Usage | None
    cpu: Sequence[float]


class Column(Struct, frozen=True):
    """`weight`: the lower, the sooner it is left out where there is no room."""

    title: str
    weight: int
    room: int
    cell: Callable[[Row], str]
    order: str = ""
    is_left: bool = False


# key: what it is called below, and what comes first
ORDERS: dict[str, tuple[str, Callable[[Row], tuple[float, ...]]]] = {
    "a": ("activity", lambda row: (-row.status.in_flight, -row.status.queued, -round(_cpu(row)))),
    "c": ("cpu", lambda row: (-_cpu(row),)),
    "m": ("memory", lambda row: (-_memory(row),)),
    "n": ("name", lambda row: tuple(map(ord, row.status.name))),
    "t": ("tok/s", lambda row: (-(row.status.tokens_per_second or 0),)),
    "r": ("restarts", lambda row: (-row.status.restarts,)),
    "u": ("uptime", lambda row: (-(row.status.uptime or 0),)),
}

NOTHING = ("-", "0", "0.0")  # cells that are dim


def rows(sample: Sample, view: View) -> list[Row]:
    """Everybody, in the order that was chosen; those who are equal in the roster's."""
    found = [
        Row(sample.at, place, one, sample.usage.get(one.pid) if one.pid else None, sample.cpu.get(one.name, ()))
        for place, one in enumerate(sample.report.specialists)
    ]
    found.sort(key=ORDERS[view.order][1])
    return found[::-1] if view.reverse else found


def frame(sample: Sample, view: View, width: int, height: int, now: float) -> list[str]:
    """A whole screen. Keeps the view's first row where there is one."""
    everybody = rows(sample, view)
    head = [*_head(sample, view, width, now), ""]
    troubles = _troubles(sample)
    if height < len(head) + 1 + len(everybody) + bool(troubles) + 1:
        head.pop()
    room = max(1, height - len(head) - 1 - bool(troubles) - 1)
    view.first = max(0, min(view.first, len(everybody) - room))
    shown = everybody[view.first : view.first + room]
    lines = [*head, *table(shown, everybody, view, width)]
    lines += [""] * (height - len(lines) - 1 - bool(troubles))
    if troubles:
        (what, due), more = troubles[0], f"  (and {len(troubles) - 1} more: chorus status)" if troubles[1:] else ""
        lines.append(_paint(view, _cut(what, width - len(due + more)) + due + more, fg="red"))
    seen = f"{view.first + 1}-{view.first + len(shown)} of {len(everybody)}" if len(shown) < len(everybody) else ""
    return [*lines, _keys(view, width, seen)][:height]


def table(shown: Sequence[Row], everybody: Sequence[Row], view: View, width: int) -> list[str]:
    """The titles and the rows, in the columns that there is room for; their widths are those of everybody's cells."""
    columns, rooms, gap = _fitting(everybody, view, width)
    titles = []
    for column, room in zip(columns, rooms, strict=True):
        title = column.title.ljust(room) if column.is_left else column.title.rjust(room)
        titles.append(_paint(view, title, fg="cyan" if column.order == view.order else None, bold=True))
    return [(" " * gap).join(titles), *(_line(row, columns, rooms, gap, view) for row in shown)]


def _line(row: Row, columns: Sequence[Column], rooms: Sequence[int], gap: int, view: View) -> str:
    cells = []
    for column, room in zip(columns, rooms, strict=True):
        text = _cut(column.cell(row), room)
        text = text.ljust(room) if column.is_left else text.rjust(room)
        cells.append(_painted_cell(column, row, text, view))
    return (" " * gap).join(cells)


def _painted_cell(column: Column, row: Row, text: str, view: View) -> str:
    match column.title:
        case "NAME":
            return _paint(view, text, fg=look.name_colour(row.place), bold=row.status.in_flight > 0)
        case "STATE":
            return _paint(view, text, fg=look.STATE_COLOURS.get(row.status.state))
        case "CPU%" if _cpu(row) >= BUSY_CPU:
            return _paint(view, text, fg="yellow")
        case "BUSY" | "WAIT" if text.strip() not in NOTHING:
            return _paint(view, text, bold=True)
        case "CPU, LAST MINUTE":
            return _paint(view, text, fg=look.name_colour(row.place))
        case "PID" | "PORT" | "MODEL" | "REMARK":
            return _paint(view, text, dim=True)
    return _paint(view, text, dim=text.strip() in NOTHING)


def _fitting(everybody: Sequence[Row], view: View, width: int) -> tuple[list[Column], list[int], int]:
    """The columns for this width, how wide each is, and the space between them."""
    highest = max([FULL_BAR_AT_LEAST, *(figure for row in everybody for figure in row.cpu)])
    curve = Column("CPU, LAST MINUTE", 2, HISTORY // PER_BAR, lambda row: _curve(row.cpu, highest))
    columns = [*COLUMNS[:-1], *([curve] if view.curves else []), COLUMNS[-1]]
    rooms = {one.title: max([one.room, len(one.title), *(len(one.cell(row)) for row in everybody)]) for one in columns}
    remarks = COLUMNS[-1]
    rooms[remarks.title] = LEAST_REMARKS

    def taken(gap: int) -> int:
        return sum(rooms[one.title] for one in columns) + gap * (len(columns) - 1)

    while len(columns) > 1 and taken(1) > width:
        columns.remove(min(columns, key=lambda one: one.weight))
    rooms["NAME"] = min(rooms["NAME"], width)
    gap = 2 if taken(2) <= width else 1
    if remarks in columns:
        rooms[remarks.title] += max(0, width - taken(gap))
    return columns, [rooms[one.title] for one in columns], gap


# -- cells ----------------------------------------------------------------------------------------------------------------


def _cpu(row: Row) -> float:
    return row.usage.cpu or 0.0 if row.usage else 0.0


def _memory(row: Row) -> int:
    return row.usage.rss if row.usage else row.status.rss_bytes or 0


def _first_token(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    return f"{milliseconds:.0f}ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f}s"


def _curve(figures: Sequence[float], highest: float) -> str:
    """The last figures as bars, the newest at the right: the highest of a few looks in each."""
    bars = [max(figures[max(0, at - PER_BAR) : at]) for at in range(len(figures), 0, -PER_BAR)][::-1]
    return "".join(BARS[min(len(BARS) - 1, round(figure / highest * (len(BARS) - 1)))] for figure in bars)


def remark(one: KeptStatus, now: float) -> str:
    """What somebody should know: what is wrong, or how the process before this one ended."""
    last = one.last_exit
    if one.state in UP and last is not None and last.cause != AS_ASKED and one.restarts:
        return f"{look.harmless(last.cause.splitlines()[0])}, {look.duration(max(0.0, now - last.at))} ago"
    said = one.last_error or one.notice or ""
    return look.harmless(said.splitlines()[0]) if said else ""


COLUMNS = [
    Column("NAME", 100, 4, lambda row: row.status.name, "n", is_left=True),
    Column("STATE", 99, 11, lambda row: row.status.state, is_left=True),
    Column("PID", 20, 5, lambda row: str(row.status.pid or "-")),
    Column("CPU%", 90, 5, lambda row: f"{row.usage.cpu:.1f}" if row.usage and row.usage.cpu is not None else "-", "c"),
    Column("MEMORY", 80, 7, lambda row: look.size(_memory(row) or None), "m"),
    Column("BUSY", 95, 4, lambda row: str(row.status.in_flight)),
    Column("WAIT", 70, 4, lambda row: str(row.status.queued)),
    Column(
        "TOK/S",
        60,
        5,
        lambda row: f"{row.status.tokens_per_second:.1f}" if row.status.tokens_per_second else "-",
        "t",
    ),
    Column("FIRST", 30, 5, lambda row: _first_token(row.status.first_token_ms)),
    Column("RST", 50, 3, lambda row: str(row.status.restarts), "r"),
    Column("UPTIME", 40, 6, lambda row: look.duration(row.status.uptime), "u"),
    Column("PORT", 4, 5, lambda row: str(row.status.port)),
    Column("MODEL", 3, 5, lambda row: look.harmless(row.status.model) if row.status.model else "-", is_left=True),
    Column("REMARK", 5, LEAST_REMARKS, lambda row: remark(row.status, row.at), is_left=True),
]


# -- around the table -----------------------------------------------------------------------------------------------------


def _head(sample: Sample, view: View, width: int, now: float) -> list[str]:
    report = sample.report
    house = report.supervisor
    team = report.specialists
    counts = {state: sum(one.state == state for one in team) for state in dict.fromkeys(one.state for one in team)}
    states = ", ".join(
        f"{count} {_paint(view, state, fg=look.STATE_COLOURS.get(state))}" for state, count in counts.items()
    )
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    silence = now - sample.at
    if silence > SILENT_AFTER:
        clock = _paint(view, f"no answer for {silence:.0f} s", fg="red", bold=True)
    title = _paint(view, f"chorus {house.version or ''}".strip(), bold=True)
    first = _ends(f"{title}  {len(team)} specialists: {states}", [clock], width)
    others = (house.pid, report.gateway.pid)
    cpu = [one.cpu for pid, one in sample.usage.items() if one.cpu is not None and pid not in others]
    busy, waiting = sum(one.in_flight for one in team), sum(one.queued for one in team)
    figures = [f"{busy} in flight", f"{waiting} queued", f"{sum(cpu):.1f}% CPU" if cpu else ""]
    figures.append(f"{look.size(sample.together)} together" if sample.together else "")
    usage = sample.usage.get(house.pid) if house.pid else None
    measured = f", {usage.cpu:.1f}% CPU, {look.size(usage.rss)}" if usage and usage.cpu is not None else ""
    state = f"supervisor {house.pid}, up {look.duration(house.uptime)}"
    state = state if house.state == "running" else f"supervisor {house.state}"
    model = _labelled(view, "model", _backend(sample, view))
    return [
        first,
        _ends(_labelled(view, "team", ", ".join(filter(None, figures))), _gateway(sample, view), width),
        _ends(model, [state + measured, state], width),
    ]


def _backend(sample: Sample, view: View) -> str:
    backend = sample.report.backend
    if backend.kind == "builtin":
        return "the built-in echo: no language model answers"
    colour = {"ready": "green", "loading": "cyan"}.get(backend.state, "red")
    parts = [
        backend.kind,
        backend.url or "",
        _paint(view, backend.state, fg=colour),
        look.harmless(backend.model or ""),
    ]
    told = "  ".join(part for part in parts if part)
    return f"{told}  {look.harmless(backend.error.splitlines()[0])}" if backend.error else told


def _gateway(sample: Sample, view: View) -> list[str]:
    """How the gateway is, in ever fewer words; nothing where there is to be none."""
    one = sample.report.gateway
    if one.state == DISABLED:
        return []
    usage = sample.usage.get(one.pid) if one.pid else None
    figures = [f"{usage.cpu:.1f}% CPU, {look.size(usage.rss)}"] if usage and usage.cpu is not None else []
    figures += [f"{one.in_flight} in flight"] if one.in_flight else []
    words = [f"gateway {_paint(view, one.state, fg=look.STATE_COLOURS.get(one.state))}", *figures]
    return [", ".join(words[:many]) for many in range(len(words), 0, -1)]


def _troubles(sample: Sample) -> list[tuple[str, str]]:
    """What is wrong with whom, and when it is tried again."""
    found = [one for one in sample.report.everybody if one.state not in UP and one.last_error]
    return [
        (
            f"{one.name} is {one.state}: {remark(one, sample.at)}",
            f"; next try in {max(0.0, one.next_due - sample.at):.0f} s" if one.next_due else "",
        )
        for one in found
    ]


def _keys(view: View, width: int, seen: str) -> str:
    parts = []
    for key, (word, _) in ORDERS.items():
        if key == view.order:
            parts.append(_paint(view, word, fg="cyan", bold=True) if view.painted else f"[{word}]")
        else:
            parts.append(click.style(word[0], underline=True) + word[1:] if view.painted else word)
    return _ends(f"sort: {' '.join(parts)}", [f"{seen}  q: quit".strip()], width)


def _labelled(view: View, label: str, text: str) -> str:
    return _paint(view, label.ljust(5), dim=True) + "  " + text


def _ends(left: str, rights: Sequence[str], width: int) -> str:
    """Two texts at the two ends of a line: the first right one that there is room for, or none."""
    for right in rights:
        space = width - len(click.unstyle(left)) - len(click.unstyle(right))
        if space >= 2 and right:
            return f"{left}{' ' * space}{right}"
    return left if len(click.unstyle(left)) <= width else _cut(click.unstyle(left), width)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(0, room - 1)] + "…"


def _paint(view: View, text: str, fg: str | int | None = None, *, bold: bool = False, dim: bool = False) -> str:
    return click.style(text, fg=fg, bold=bold or None, dim=dim or None) if view.painted else text
