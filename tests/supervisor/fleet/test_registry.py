from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import anyio
import pytest
from keeping import BACKEND

from protocol.control import HOUSE, Gap, LastExit, Snapshot, SpecialistStatus, Transition
from supervisor.fleet.eventlog import read_record
from supervisor.fleet.registry import WATCHER_BACKLOG, Registry, Watcher, read_journal


def entry(name: str) -> SpecialistStatus:
    return SpecialistStatus(name=name, ai_id=f"{name}-ci", host="127.0.0.1", port=1, state="stopped", wanted="up")


def registry(folder: Path) -> Registry:
    return Registry(folder / "state" / "registry.json", [entry("apollo"), entry("athena")], BACKEND)


def test_a_report_shows_everybody_in_order_or_whom_was_asked_for(tmp_path: Path) -> None:
    known = registry(tmp_path)
    assert [one.name for one in known.report().specialists] == ["apollo", "athena"]
    assert [one.name for one in known.report(["athena"]).specialists] == ["athena"]
    assert known.report().supervisor.pid == os.getpid()


async def test_who_is_added_and_who_is_removed_is_told_to_watchers_and_journalled(tmp_path: Path) -> None:
    known = registry(tmp_path)
    async with known.watch() as watcher:
        known.add(entry("zeus"), "added")
        known.arrange(["zeus", "athena", "apollo"])
        known.remove("apollo", "removed")
        watcher.stop()
        told = [(one.name, one.from_, one.to) async for one in watcher.changes() if isinstance(one, Transition)]
    assert told == [("zeus", "absent", "stopped"), ("apollo", "stopped", "absent")]
    assert known.names == ["zeus", "athena"]
    known.write()
    journal = read_journal(known.journal)
    assert journal is not None
    assert [one.name for one in journal.specialists] == ["zeus", "athena"]


def test_uptime_is_counted_from_the_start(tmp_path: Path) -> None:
    known = registry(tmp_path)
    known.move("apollo", "starting", "asked", pid=7, uptime=time.time() - 100)
    apollo, athena = known.report().specialists
    assert apollo.uptime == pytest.approx(100, abs=5)
    assert athena.uptime is None


def test_since_changes_with_the_state_only(tmp_path: Path) -> None:
    known = registry(tmp_path)
    known.move("apollo", "ready", "answers")
    since = known["apollo"].since
    known.move("apollo", "ready", "answers still")
    assert known["apollo"].since == since > 0


async def test_a_watcher_gets_a_snapshot_and_then_every_change(tmp_path: Path) -> None:
    known = registry(tmp_path)
    known.move("apollo", "starting", "asked")
    async with known.watch() as watcher:
        changes = watcher.changes()
        first = await anext(changes)
        assert isinstance(first, Snapshot)
        assert first.seq == 1
        known.move("apollo", "ready", "answers", pid=7)
        known.move("athena", "starting", "asked")
        second, third = await anext(changes), await anext(changes)
        await changes.aclose()
    assert isinstance(second, Transition)
    assert isinstance(third, Transition)
    assert (second.seq, second.name, second.from_, second.to, second.cause, second.pid) == (
        2,
        "apollo",
        "starting",
        "ready",
        "answers",
        7,
    )
    assert (third.seq, third.name) == (3, "athena")


async def test_a_slow_watcher_is_told_of_a_gap_and_given_a_new_snapshot(tmp_path: Path) -> None:
    known = registry(tmp_path)
    async with known.watch() as watcher:
        changes = watcher.changes()
        await anext(changes)
        for number in range(WATCHER_BACKLOG + 10):
            known.move("apollo", f"state {number}", "again")
        kept = [await anext(changes) for _ in range(WATCHER_BACKLOG)]
        gap, snapshot = await anext(changes), await anext(changes)
        await changes.aclose()
    assert [one.seq for one in kept if isinstance(one, Transition)] == list(range(1, WATCHER_BACKLOG + 1))
    assert gap == Gap(missed=10)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.seq == WATCHER_BACKLOG + 10


async def test_what_was_told_before_the_end_is_still_read(tmp_path: Path) -> None:
    known = registry(tmp_path)
    async with known.watch() as watcher:
        changes = watcher.changes()
        await anext(changes)
        known.move("apollo", "ready", "answers")
        watcher.stop()
        assert [getattr(one, "to", "") async for one in changes] == ["ready"]


async def test_a_watcher_that_left_is_forgotten(tmp_path: Path) -> None:
    known = registry(tmp_path)
    async with known.watch():
        pass
    assert not known._watchers


async def test_a_condition_is_looked_at_after_every_change(tmp_path: Path) -> None:
    known = registry(tmp_path)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(known.wait_for, lambda: known["athena"].state == "ready")
            await anyio.lowlevel.checkpoint()
            known.move("apollo", "ready", "answers")
            await anyio.lowlevel.checkpoint()
            known.move("athena", "ready", "answers")


async def test_a_change_is_in_the_journal_after_a_moment(tmp_path: Path) -> None:
    known = registry(tmp_path)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(known.run)
            known.want("apollo", "down")
            while (found := read_journal(known.journal)) is None:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    assert found is not None
    assert found.specialists[0].wanted == "down"


async def test_the_last_state_is_in_the_journal_at_the_end(tmp_path: Path) -> None:
    known = registry(tmp_path)
    async with anyio.create_task_group() as group:
        group.start_soon(known.run)
        await anyio.lowlevel.checkpoint()
        known.set_state("down")
        group.cancel_scope.cancel()
    found = read_journal(known.journal)
    assert found is not None
    assert found.supervisor.state == "down"


def test_a_journal_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    with caplog.at_level(logging.ERROR):
        registry(tmp_path).write()
    assert "cannot write the registry" in caplog.text


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"version":1}'])
def test_a_journal_that_cannot_be_read_is_as_good_as_none(tmp_path: Path, content: bytes | None) -> None:
    journal = tmp_path / "registry.json"
    if content is not None:
        journal.write_bytes(content)
    assert read_journal(journal) is None


def test_a_journal_from_a_later_version_is_read(tmp_path: Path) -> None:
    known = registry(tmp_path)
    known.write()
    later = known.journal.read_bytes().replace(b'"version":1', b'"version":1,"more":{}', 1)
    known.journal.write_bytes(later)
    assert read_journal(known.journal) is not None


# -- events ---------------------------------------------------------------------------------------------------------------


def events(known: Registry) -> list[Transition]:
    """What is on disk."""
    lines = known.events.path.read_bytes().splitlines()
    return [event for line in lines if (event := read_record(line)) is not None]


def test_every_change_is_on_disk_with_the_number_that_watchers_are_told(tmp_path: Path) -> None:
    known = registry(tmp_path)
    known.move("apollo", "starting", "asked", pid=7)
    known.move("apollo", "ready", "answers")
    assert [(one.seq, one.name, one.from_, one.to, one.cause, one.pid) for one in events(known)] == [
        (1, "apollo", "stopped", "starting", "asked", 7),
        (2, "apollo", "starting", "ready", "answers", 7),
    ]


async def test_a_change_is_on_disk_before_anybody_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry(tmp_path)
    on_disk: list[int] = []
    tell = Watcher.tell

    def told(watcher: Watcher, transition: Transition) -> None:
        on_disk.append(events(known)[-1].seq)
        assert on_disk[-1] == transition.seq
        tell(watcher, transition)

    monkeypatch.setattr(Watcher, "tell", told)
    async with known.watch():
        known.move("apollo", "starting", "asked")
        known.move("apollo", "ready", "answers")
    assert on_disk == [1, 2]


async def test_the_next_supervisor_goes_on_counting(tmp_path: Path) -> None:
    registry(tmp_path).move("apollo", "starting", "asked")
    after = registry(tmp_path)
    assert after.snapshot().seq == 1
    after.move("apollo", "starting", "asked again")
    assert [one.seq for one in events(after)] == [1, 2]


def test_an_end_has_its_process_its_signal_and_the_time_of_the_next_try(tmp_path: Path) -> None:
    known = registry(tmp_path)
    known.move("apollo", "ready", "answers", pid=7)
    last = LastExit("killed by SIGSEGV", None, "SIGSEGV", 1.0)
    known.move("apollo", "backing_off", last.cause, pid=None, last_exit=last, attempt=3, next_due=99.5)
    known.move("apollo", "starting", "tried again", pid=8)
    _, ended, again = events(known)
    assert (ended.pid, ended.old_pid, ended.signal, ended.code) == (None, 7, "SIGSEGV", None)
    assert (ended.attempt, ended.next_due) == (3, 99.5)
    assert (again.pid, again.old_pid, again.signal, again.next_due) == (8, None, None, None)
    assert known["apollo"].next_due is None
    assert known["apollo"].attempt == 3


def test_the_supervisor_has_events_of_its_own(tmp_path: Path) -> None:
    known = registry(tmp_path)
    known.came_up(None)
    known.happened("the fork server was lost")
    known.set_state("stopping")
    known.set_state("stopping")
    known.set_state("down")
    assert [(one.name, one.from_, one.to) for one in events(known)] == [
        (HOUSE, "down", "running"),
        (HOUSE, "running", "running"),
        (HOUSE, "running", "stopping"),
        (HOUSE, "stopping", "down"),
    ]
    assert {one.pid for one in events(known)} == {os.getpid()}


@pytest.mark.parametrize(("state", "is_said"), [("running", True), ("stopping", True), ("down", False)])
def test_a_supervisor_says_when_the_one_before_it_had_not_gone_down(tmp_path: Path, state: str, is_said: bool) -> None:
    before = registry(tmp_path)
    before.set_state(state)
    after = registry(tmp_path)
    after.came_up(before.report())
    assert (f"(pid {os.getpid()}) had ended without going down" in events(after)[-1].cause) is is_said
