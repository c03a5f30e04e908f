"""What `chorus top` shows on screens of several sizes."""

from __future__ import annotations

import re
from typing import Any

import click
import pytest
from msgspec.structs import replace

from protocol.control import (
    BackendStatus,
    GatewayStatus,
    LastExit,
    SpecialistStatus,
    StatusReport,
    SupervisorStatus,
)
from protocol.names import OFFSETS, ROSTER
from supervisor.cli.meter import Usage
from supervisor.cli.toptable import ORDERS, Sample, View, frame, rows

NOW = 1_000_000.0
BACKEND = BackendStatus("ollama", "http://127.0.0.1:11434", "ready", None, "llama3.2:latest")


def specialist(name: str, **said: Any) -> SpecialistStatus:
    usual: dict[str, Any] = {"state": "ready", "pid": 4000 + OFFSETS.get(name, 0), "uptime": 100.0, "model": "llama3.2"}
    port = 45000 + OFFSETS.get(name, 0)
    return SpecialistStatus(name=name, ai_id=f"{name}-ci", host="127.0.0.1", port=port, wanted="up", **usual | said)


def sample(*team: SpecialistStatus, **said: Any) -> Sample:
    house = SupervisorStatus(7, 3600.0, "running", "1.2.3")
    report = StatusReport(
        supervisor=house, gateway=GatewayStatus(url=None, state="disabled"), backend=BACKEND, specialists=list(team)
    )
    usage = {one.pid: Usage(1.0, 30 << 20) for one in team if one.pid} | {7: Usage(0.5, 20 << 20)}
    return Sample(NOW, report, **({"usage": usage} | said))


def with_gateway(seen: Sample, **said: Any) -> Sample:
    usual: dict[str, Any] = {"url": "http://127.0.0.1:8003", "state": "ready", "pid": 9}
    return replace(seen, report=replace(seen.report, gateway=GatewayStatus(**usual | said)))


def everybody(**said: Any) -> Sample:
    return sample(*(specialist(name) for name in ROSTER), **said)


def shown(seen: Sample, width: int = 80, height: int = 24, *, now: float = NOW, **view: Any) -> list[str]:
    return [click.unstyle(line) for line in frame(seen, View(**view), width, height, now)]


def names(seen: Sample, **view: Any) -> list[str]:
    return [row.status.name for row in rows(seen, View(**view))]


@pytest.mark.parametrize("width", [*range(20, 100, 7), 80, 120, 200])
@pytest.mark.parametrize("height", [3, 10, 24, 50])
def test_a_frame_fills_the_screen_and_no_line_is_wider(width: int, height: int) -> None:
    lines = shown(everybody(cpu={"apollo": [3.0] * 60}), width, height)
    assert len(lines) == height
    assert max(map(len, lines)) <= width


def test_all_18_and_what_is_wrong_fit_on_80_by_24() -> None:
    team = [specialist(name) for name in ROSTER[1:]]
    failed = specialist("engram", state="failed", pid=None, last_error="killed by SIGSEGV " * 9, next_due=NOW + 42)
    lines = shown(sample(failed, *team))
    assert sorted(line.split()[0] for line in lines[4:22]) == sorted(ROSTER)
    assert lines[22].startswith("engram is failed: killed by SIGSEGV")
    assert lines[22].endswith("…; next try in 42 s")
    assert lines[23].endswith("q: quit")


def test_columns_are_left_out_where_there_is_no_room_the_most_important_last() -> None:
    def titles(width: int) -> list[str]:
        [line] = [line for line in shown(everybody(), width, 30) if line.startswith("NAME")]
        return re.split(r" {2,}|(?<=\S) (?=[A-Z]+)", line.strip())

    assert {"PID", "TOK/S", "UPTIME", "RST"} <= set(titles(80))
    assert {"PORT", "MODEL", "REMARK"} <= set(titles(200))
    assert titles(40)[:2] == ["NAME", "STATE"]
    assert "BUSY" in titles(40)


def test_who_works_comes_first_and_those_who_are_equal_in_the_rosters_order() -> None:
    team = [specialist("engram"), specialist("hermes", in_flight=1), specialist("ergon", in_flight=3)]
    seen = sample(*team, specialist("rhetor"))
    assert names(seen) == ["ergon", "hermes", "engram", "rhetor"]
    hot = {one.pid: Usage(90.0 if one.name == "rhetor" else 1.2, 1) for one in seen.report.specialists if one.pid}
    assert names(sample(*team, specialist("rhetor"), usage=hot)) == ["ergon", "hermes", "rhetor", "engram"]


@pytest.mark.parametrize(
    ("order", "first"), [("c", "b"), ("m", "c"), ("n", "a"), ("t", "d"), ("r", "e"), ("u", "f"), ("a", "g")]
)
def test_every_order_has_its_first(order: str, first: str) -> None:
    assert set(ORDERS) == set("cmntrua")
    special: dict[str, dict[str, Any]] = {
        "d": {"tokens_per_second": 9.0},
        "e": {"restarts": 4},
        "f": {"uptime": 999.0},
        "g": {"in_flight": 1},
    }
    team = [specialist(name, pid=number, **special.get(name, {})) for number, name in enumerate("zbcdefga", 1)]
    usage = {number: Usage(50.0 if number == 2 else 0.0, 99 if number == 3 else 1) for number in range(1, 9)}
    seen = sample(*team, usage=usage)
    assert names(seen, order=order)[0] == first
    assert names(seen, order=order, reverse=True)[-1] == first


def test_more_than_the_screen_holds_can_be_scrolled_to_the_end() -> None:
    many = sample(*(specialist(f"s{number:03d}", pid=number + 1) for number in range(200)))
    view = View(order="n", first=10_000)
    lines = [click.unstyle(line) for line in frame(many, view, 80, 24, NOW)]
    assert lines[22].split()[0] == "s199"
    assert "181-200 of 200" in lines[23] or "182-200 of 200" in lines[23]
    assert view.first in (180, 181)


def test_a_supervisor_that_does_not_answer_is_seen() -> None:
    assert "no answer for 7 s" in shown(everybody(), now=NOW + 7)[0]


def test_without_colours_there_is_no_escape_byte_and_the_order_is_in_brackets() -> None:
    text = "\n".join(frame(everybody(), View(painted=False), 80, 24, NOW))
    assert "\x1b" not in text
    assert "[activity]" in text


def test_a_past_end_is_remarked_and_control_bytes_are_harmless() -> None:
    last = LastExit("killed by \x1b[31mSIGKILL", None, "SIGKILL", NOW - 90)
    lines = shown(sample(specialist("apollo", restarts=2, last_exit=last)), 200, 24)
    assert any(line.rstrip().endswith("killed by \ufffd[31mSIGKILL, 1m30s ago") for line in lines)


def test_figures_that_nobody_has_measured_are_absent() -> None:
    [line] = [line for line in shown(sample(specialist("apollo"), usage={})) if line.startswith("apollo")]
    assert re.search(r"ready +4012 +- +- +0 +0 +- +- +0 +1m40s", line)


def test_the_gateway_is_told_beside_the_figures_of_the_team_and_not_counted_among_them() -> None:
    seen = everybody()
    seen = with_gateway(replace(seen, usage=seen.usage | {9: Usage(7.5, 40 << 20)}), in_flight=3)
    wide = shown(seen, 100)[1]
    assert "queued, 18.0% CPU  " in wide
    assert wide.endswith("  gateway ready, 7.5% CPU, 40 MiB, 3 in flight")
    assert shown(seen, 80)[1].endswith("gateway ready, 7.5% CPU, 40 MiB")
    assert shown(seen, 60)[1].endswith("gateway ready")
    assert "gateway" not in "".join(shown(everybody()))


def test_what_is_wrong_with_the_gateway_is_said() -> None:
    seen = with_gateway(
        everybody(), state="backing_off", pid=None, last_error="port 8003 is held by pid 4", next_due=NOW + 2
    )
    assert any(
        line.startswith("gateway is backing_off: port 8003 is held by pid 4; next try in 2 s") for line in shown(seen)
    )
