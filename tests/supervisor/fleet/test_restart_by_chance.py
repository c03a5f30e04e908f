"""The arithmetic of restarts, in any order of events and at any pace."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from supervisor.fleet.restart import (
    FIRST_DELAY,
    FORGIVEN_AFTER,
    JITTER,
    LONGEST_BLOCKED,
    LONGEST_DELAY,
    RETRY_FAILED_AFTER,
    Record,
    blocked,
    blocked_delay,
    failed,
    forgiven,
    next_delay,
)

CHANCES = st.floats(0, 1)
INTENSITY, PERIOD = 5, 30.0
ROUNDING = 1e-9


class OneSpecialist(RuleBasedStateMachine):
    """What a keeper does with a record: it fails, waits, is tried, is ready for a while, fails again. Time passes by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.record = Record()
        self.restarts: list[float] = []  # those nobody asked for, while it had not given up
        self.delay = 0.0

    @rule(lived=st.floats(0, 20), share_ready=CHANCES, chance=CHANCES)
    def fails(self, lived: float, share_ready: float, chance: float) -> None:
        self.now += lived
        ready_for = lived * share_ready
        was = self.record
        self.record = failed(forgiven(was, ready_for), self.now, INTENSITY, PERIOD)
        self.delay = next_delay(self.record, chance)
        if ready_for >= FORGIVEN_AFTER:
            assert self.record == failed(Record(), self.now, INTENSITY, PERIOD)
            assert self.delay == 0
            self.restarts.clear()  # what was forgiven is not counted
        elif was.gave_up:
            assert self.record.gave_up
        self.now += self.delay
        if not self.record.gave_up:
            self.restarts.append(self.now)

    @rule(tries=st.integers(1, 10), chance=CHANCES)
    def is_blocked(self, tries: int, chance: float) -> None:
        before = self.record
        for _ in range(tries):
            self.record = blocked(self.record)
            wait = blocked_delay(self.record, chance)
            assert FIRST_DELAY * (1 - JITTER) - ROUNDING <= wait <= LONGEST_BLOCKED * (1 + JITTER) + ROUNDING
            self.now += wait
        assert (self.record.in_a_row, self.record.times, self.record.gave_up) == (
            before.in_a_row,
            before.times,
            before.gave_up,
        )

    @precondition(lambda self: self.record.gave_up)
    @rule()
    def is_given_another_chance(self) -> None:
        self.record, self.delay = Record(), 0.0
        self.restarts.clear()

    @invariant()
    def no_more_restarts_than_intensity_in_any_period(self) -> None:
        """One more where the first of them was put off: its failure lies before the period."""
        for at in self.restarts:
            assert sum(at - PERIOD < other <= at for other in self.restarts) <= INTENSITY + 1

    @invariant()
    def delays_are_within_their_bounds(self) -> None:
        if self.record.gave_up:
            assert abs(self.delay - RETRY_FAILED_AFTER) <= RETRY_FAILED_AFTER * JITTER + ROUNDING
        else:
            assert 0 <= self.delay <= LONGEST_DELAY * (1 + JITTER) + ROUNDING

    @invariant()
    def the_record_stays_small(self) -> None:
        assert len(self.record.times) <= INTENSITY + 1 or self.record.gave_up


TestOneSpecialist = OneSpecialist.TestCase
TestOneSpecialist.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=60),
    st.integers(0, 10),
    st.floats(1, 100),
)
def test_it_gives_up_exactly_when_a_period_holds_more_failures_than_intensity(
    pauses: list[float], intensity: int, period: float
) -> None:
    now, record, at = 0.0, Record(), list[float]()
    for pause in pauses:
        now += pause
        at.append(now)
        record = failed(record, now, intensity, period)
        too_many = any(sum(end - other < period for other in at if other <= end) > intensity for end in at)
        assert record.gave_up is too_many


@given(st.integers(0, 10**9), CHANCES, CHANCES)
def test_a_delay_never_falls_as_failures_go_on(in_a_row: int, chance: float, other: float) -> None:
    earlier, later = Record(in_a_row=in_a_row), Record(in_a_row=in_a_row + 1)
    assert next_delay(earlier, chance) <= next_delay(later, chance)
    spread = abs(next_delay(later, chance) - next_delay(later, other))
    assert spread <= 2 * JITTER * LONGEST_DELAY + ROUNDING
