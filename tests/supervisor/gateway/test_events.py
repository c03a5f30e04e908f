"""What becomes of the team, followed over HTTP across everything that can happen to who tells it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import anyio
import pytest
from gatewaying import Event, Events, ServedGateway, gateway, gateway_of
from keeping import control, report
from scripted import EchoBackend
from team import Team

from protocol.control import (
    HOUSE,
    BackendStatus,
    Gap,
    GatewayStatus,
    Restart,
    Snapshot,
    StatusReport,
    SupervisorStatus,
    Transition,
)
from supervisor.fleet.eventlog import FILE, EventLog
from supervisor.gateway import happenings, stream


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    with Team.start(tmp_path, roster=["apollo", "metis"]) as started:
        yield started


async def restarted(team: Team, name: str = "metis") -> None:
    async with control(team) as operator:
        assert (await operator.call(Restart(names=[name]))).ok


async def ready_again(events: Events, name: str = "metis") -> list[Event]:
    """The events up to the one that says that somebody is ready."""
    seen = []
    async for event in events:
        seen.append(event)
        if event.name == "transition" and (event.json["name"], event.json["to"]) == (name, "ready"):
            return seen
    raise AssertionError(f"the stream ended: {seen}")


def numbers(events: list[Event]) -> list[int]:
    return [int(event.id.rpartition("-")[2]) for event in events]


async def test_a_new_reader_is_given_the_team_and_then_every_change(team: Team) -> None:
    async with gateway_of(team) as served:
        with anyio.fail_after(20):
            async with served.events("GET", "/api/events") as events:
                first = await anext(aiter(events))
                await restarted(team)
                seen = await ready_again(events)
    assert (first.name, first.json["type"]) == ("snapshot", "snapshot")
    assert numbers([first]) == [first.json["seq"]]
    picture = first.json["picture"]
    assert [(one["id"], one["state"]) for one in picture["specialists"]] == [
        ("apollo-ai", "ready"),
        ("metis-ai", "ready"),
    ]
    assert numbers(seen) == list(range(first.json["seq"] + 1, first.json["seq"] + 1 + len(seen)))
    assert {event.name for event in seen} == {"transition"}
    assert [event.json["seq"] for event in seen] == numbers(seen)
    assert seen[0].json["cause"] == "asked to restart"
    assert {"from", "to", "at", "pid"} <= seen[0].json.keys()


async def test_a_place_is_good_across_gateways_and_supervisors(team: Team) -> None:
    async with gateway_of(team) as served:
        with anyio.fail_after(20):
            async with served.events("GET", "/api/events") as events:
                await restarted(team)
                last = (await ready_again(events))[-1]
    await restarted(team)  # nobody follows, and no gateway runs
    os.kill(team.status()["supervisor"]["pid"], signal.SIGKILL)
    assert team.run("up").returncode == 0
    async with gateway_of(team) as served:
        with anyio.fail_after(20):
            async with served.events("GET", "/api/events", headers={"Last-Event-ID": last.id}) as events:
                await restarted(team, "apollo")
                seen = await ready_again(events, "apollo")
            async with served.events("GET", f"/api/events?last_event_id={last.id}") as events:
                again = [event async for event in _first(events, len(seen))]
    assert numbers(seen) == list(range(numbers([last])[0] + 1, numbers([last])[0] + 1 + len(seen)))
    assert {event.name for event in seen} == {"transition"}
    assert {event.json["name"] for event in seen} == {"metis", HOUSE, "apollo"}
    assert [str(event) for event in again] == [str(event) for event in seen]


async def _first(events: Events, count: int) -> AsyncIterator[Event]:
    async for event in events:
        yield event
        count -= 1
        if not count:
            return


async def test_a_supervisor_that_comes_back_is_heard_by_who_follows(team: Team) -> None:
    async with gateway_of(team) as served:
        with anyio.fail_after(30):
            async with served.events("GET", "/api/events") as events:
                assert (await anext(aiter(events))).name == "snapshot"
                before = (await report(team)).supervisor.pid
                assert before
                os.kill(before, signal.SIGKILL)
                assert (await anyio.to_thread.run_sync(team.run, "up")).returncode == 0
                await restarted(team)
                seen = await ready_again(events)
    assert [event.json["name"] for event in seen if event.json["name"] == HOUSE] != []
    assert numbers(seen) == list(range(numbers(seen)[0], numbers(seen)[0] + len(seen)))


# -- without a team: what the supervisor would say is said here ---------------------------------------------------


def moved(seq: int, name: str = "apollo", to: str = "ready") -> Transition:
    return Transition(seq=seq, name=name, from_="starting", to=to, cause="x", at=1000.0 + seq)


def snapshot(served: ServedGateway, seq: int) -> Snapshot:
    status = StatusReport(
        supervisor=SupervisorStatus(1, 1.0, "running"),
        gateway=GatewayStatus(url=None, state="disabled", pid=None),
        backend=BackendStatus("builtin", None, "ready", None),
        specialists=served.house.team.specialists,
    )
    return Snapshot(seq=seq, status=status)


def written(folder: Path, *seqs: int, at: float = 1000.0) -> None:
    log = EventLog(folder / FILE)
    for seq in seqs:
        log.append(Transition(seq=seq, name="apollo", from_="a", to="b", cause="x", at=at + seq))
    log.close()


async def read(served: ServedGateway, count: int, last_event_id: str = "") -> list[Event]:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    with anyio.fail_after(5):
        async with served.events("GET", "/api/events", headers=headers) as events:
            return [event async for event in _first(events, count)]


def epoch(folder: Path) -> str:
    return (folder / happenings.EPOCH_FILE).read_text()


async def test_what_is_in_the_log_can_be_read_from_any_place(tmp_path: Path) -> None:
    written(tmp_path, *range(1, 8))
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        for since in range(7):
            seen = await read(served, 7 - since, f"{epoch(tmp_path)}-{since}")
            assert numbers(seen) == list(range(since + 1, 8))
        [first] = await read(served, 1)
    assert (first.name, first.json["seq"]) == ("snapshot", 7)


@pytest.mark.parametrize("place", ["0123456789abcdef-3", "nonsense", "x-99999999999999999999"])
async def test_a_place_of_another_life_begins_anew_with_a_word(tmp_path: Path, place: str) -> None:
    written(tmp_path, 1, 2, 3)
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        [first] = await read(served, 1, place)
        word = epoch(tmp_path)
    assert (first.name, first.id, first.json["lost"]) == ("stream_reset", f"{word}-3", None)
    assert first.json["snapshot"]["picture"]["specialists"][0]["id"] == "apollo-ai"


async def test_a_place_before_everything_that_is_kept_is_told_how_much_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "RING_FRAMES", 5)
    written(tmp_path, *range(1, 11))
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        [first] = await read(served, 1, f"{epoch(tmp_path)}-2")
    assert (first.name, first.json["lost"], first.json["snapshot"]["seq"]) == ("stream_reset", 3, 10)


async def test_behind_a_hole_in_the_log_it_begins(tmp_path: Path) -> None:
    written(tmp_path, 1, 2, 5, 6)
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        assert numbers(await read(served, 2, f"{epoch(tmp_path)}-4")) == [5, 6]
        [first] = await read(served, 1, f"{epoch(tmp_path)}-2")
    assert (first.name, first.json["lost"]) == ("stream_reset", 2)


async def test_what_happened_between_two_watches_is_read_from_the_log(tmp_path: Path) -> None:
    written(tmp_path, 1, 2)
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        written(tmp_path, 3, 4)
        served.house.happenings.take(snapshot(served, 4))
        served.house.happenings.take(moved(5))
        served.house.happenings.take(moved(5))  # told twice, it is one event
        assert numbers(await read(served, 5, f"{epoch(tmp_path)}-0")) == [1, 2, 3, 4, 5]


async def test_who_follows_is_told_of_a_gap_with_the_team_as_it_is(tmp_path: Path) -> None:
    written(tmp_path, 1)
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            async with served.events("GET", "/api/events") as events:
                reading = aiter(events)
                assert (await anext(reading)).name == "snapshot"
                served.house.happenings.take(Gap(missed=3))
                served.house.happenings.take(snapshot(served, 4))
                reset = await anext(reading)
                served.house.happenings.take(moved(5))
                after = await anext(reading)
    assert (reset.name, reset.json["lost"], reset.json["snapshot"]["seq"]) == ("stream_reset", 3, 4)
    assert (after.name, after.id.rpartition("-")[2]) == ("transition", "5")


async def test_an_emptied_state_folder_is_another_life(tmp_path: Path) -> None:
    written(tmp_path, *range(1, 8))
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        old = epoch(tmp_path)
        async with served.events("GET", "/api/events") as events:
            assert (await anext(aiter(events))).name == "snapshot"
            (tmp_path / FILE).unlink()
            written(tmp_path, 1, at=5000.0)
            served.house.happenings.take(snapshot(served, 1))
            with anyio.fail_after(5):
                assert await events.all() == []  # let go: it comes back
        assert epoch(tmp_path) != old
        [first] = await read(served, 1, f"{old}-7")
        assert (first.name, first.json["snapshot"]["seq"]) == ("stream_reset", 1)


async def test_a_gateway_that_goes_down_lets_go_of_who_follows_and_does_not_say_that_it_was_the_end(
    tmp_path: Path,
) -> None:
    written(tmp_path, 1, 2)
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            async with served.events("GET", "/api/events") as events:
                assert (await anext(aiter(events))).name == "snapshot"
                await served.house.drain(0.0)
                assert await events.all() == []
            path, headers = f"/api/events?last_event_id={epoch(tmp_path)}-2", {"Accept": "text/event-stream"}
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await served.request("GET", path, headers=headers)
