"""The limit of memory, as arithmetic: `now` and bytes are arguments."""

from __future__ import annotations

from itertools import pairwise

import pytest

from supervisor.fleet.memory import LOOKS, MIB, PARDONED_UP_TO, YOUNG, Ceiling, Finding, Record, is_due, looked

LIMIT = 100 * MIB
OLD = YOUNG + 1


def look(ceiling: Ceiling, rss: int, age: float, is_idle: bool = True, limit: int | None = LIMIT) -> Finding:
    return ceiling.look(rss * MIB, limit, age, is_idle)


def test_it_is_due_when_a_few_looks_in_a_row_found_too_much() -> None:
    record = Record()
    for count in range(1, LOOKS + 1):
        record = looked(record, LIMIT + 1, LIMIT, OLD + count)
        assert is_due(record, OLD + count) == (count == LOOKS)


def test_one_look_that_finds_enough_room_forgives_what_was_before() -> None:
    record = Record()
    for _ in range(LOOKS - 1):
        record = looked(record, LIMIT + 1, LIMIT, OLD)
    record = looked(record, LIMIT, LIMIT, OLD)
    assert not is_due(looked(record, LIMIT + 1, LIMIT, OLD), OLD)


def test_an_idle_one_is_recycled_with_its_cause_and_a_busy_one_is_waited_for() -> None:
    ceiling = Ceiling()
    for _ in range(LOOKS - 1):
        assert look(ceiling, 612, OLD) == Finding()
    waiting = look(ceiling, 612, OLD, is_idle=False)
    assert waiting == Finding(notice="612 MiB of memory, more than 100 MiB: it is replaced as soon as it is idle")
    assert look(ceiling, 613, OLD) == Finding(recycle="recycled: 613 MiB of memory, more than 100 MiB")


def test_it_is_not_asked_for_again_at_every_look_when_there_was_no_successor() -> None:
    ceiling = Ceiling()
    found = [look(ceiling, 200, OLD + number).recycle is not None for number in range(3 * LOOKS)]
    assert found == [*[False] * (LOOKS - 1), True] * 3


@pytest.mark.parametrize("period", [0.1, 2.0, 45.0, 600.0])
def test_a_limit_that_every_new_process_exceeds_makes_no_loop_and_is_said_aloud_once(period: float) -> None:
    ceiling = Ceiling()
    loud = []
    for _process in range(5):
        ceiling.begin()
        for number in range(50):
            found = look(ceiling, 150, number * period)
            assert found.recycle is None
            loud += [found.loud] if found.loud else []
    assert loud == [
        (
            "it had 150 MiB of memory soon after its start, more than 100 MiB: "
            "max_rss_bytes is too low for it, it is left alone up to 300 MiB"
        )
    ]
    assert found.notice == loud[0]


def test_a_pardoned_one_that_leaks_is_recycled_after_all() -> None:
    ceiling = Ceiling()
    for number in range(LOOKS):
        look(ceiling, 150, float(number))
    allowed = 150 * PARDONED_UP_TO
    assert all(look(ceiling, allowed, OLD).recycle is None for _ in range(10))
    found = [look(ceiling, allowed + 1, OLD).recycle for _ in range(LOOKS)]
    assert found == [*[None] * (LOOKS - 1), f"recycled: {allowed + 1} MiB of memory, more than 100 MiB"]


def test_nobody_is_recycled_twice_within_its_youth() -> None:
    ceiling = Ceiling()
    recycled, age = [], 0.0
    for second in range(3600):  # a leak of 10 MiB a second
        found = look(ceiling, 50 + int(age) * 10, age)
        age += 1.0
        if found.recycle:
            recycled.append(second)
            ceiling.begin()
            age = 0.0
    assert recycled
    assert min(later - earlier for earlier, later in pairwise(recycled)) >= YOUNG


def test_another_limit_begins_anew() -> None:
    ceiling = Ceiling()
    for number in range(LOOKS):
        look(ceiling, 150, float(number))
    assert look(ceiling, 150, OLD, limit=200 * MIB) == Finding()
    assert look(ceiling, 150, OLD, limit=None) == Finding()
    for number in range(LOOKS - 1):
        look(ceiling, 150, float(number), limit=140 * MIB)
    assert look(ceiling, 150, float(LOOKS), limit=140 * MIB).loud
