from __future__ import annotations

import pytest

from supervisor.fleet.restart import (
    FORGIVEN_AFTER,
    LONGEST_BLOCKED,
    RETRY_FAILED_AFTER,
    Record,
    blocked,
    blocked_delay,
    failed,
    forgiven,
    next_delay,
)

INTENSITY, PERIOD = 5, 30.0
NO_LIMIT = 10**6


def after(failures: int, apart: float = 0.0, intensity: int = NO_LIMIT) -> Record:
    record = Record()
    for number in range(failures):
        record = failed(record, number * apart, intensity, PERIOD)
    return record


def test_the_first_restart_comes_at_once() -> None:
    assert next_delay(after(1), 0.5) == 0


def test_without_a_failure_nothing_is_waited_for() -> None:
    assert next_delay(Record(), 0.5) == 0


def test_delays_double_up_to_the_longest() -> None:
    delays = [next_delay(after(failures), 0.5) for failures in range(1, 12)]
    assert delays == pytest.approx([0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15, 15])


@pytest.mark.parametrize("failures", range(2, 12))
def test_jitter_is_a_fifth_either_way(failures: int) -> None:
    middle = next_delay(after(failures), 0.5)
    assert next_delay(after(failures), 0.0) == pytest.approx(middle * 0.8)
    assert next_delay(after(failures), 1.0) == pytest.approx(middle * 1.2)


def test_a_delay_grows_with_chance() -> None:
    delays = [next_delay(after(5), chance / 10) for chance in range(11)]
    assert delays == sorted(delays)


def test_a_long_night_of_failures_stays_arithmetic() -> None:
    assert next_delay(Record(in_a_row=10**9), 0.5) == 15


@pytest.mark.parametrize("failures", range(10))
def test_more_than_intensity_within_the_period_gives_up(failures: int) -> None:
    assert after(failures, apart=1.0, intensity=INTENSITY).gave_up is (failures > INTENSITY)


def test_a_rate_below_intensity_never_gives_up() -> None:
    assert not after(1000, apart=PERIOD / INTENSITY, intensity=INTENSITY).gave_up


def test_a_failure_leaves_the_window_after_the_period() -> None:
    record = failed(Record(times=(0.0, 0.1)), PERIOD, INTENSITY, PERIOD)
    assert record.times == (0.1, PERIOD)


def test_the_window_does_not_grow_without_bound() -> None:
    assert len(after(10_000, apart=1.0).times) == PERIOD


def test_with_intensity_zero_the_first_failure_gives_up() -> None:
    assert failed(Record(), 0.0, 0, PERIOD).gave_up


def test_whoever_gave_up_is_tried_again_slowly() -> None:
    record = after(6, intensity=INTENSITY)
    assert next_delay(record, 0.5) == RETRY_FAILED_AFTER
    assert next_delay(record, 0.0) == pytest.approx(RETRY_FAILED_AFTER * 0.8)
    assert next_delay(record, 1.0) == pytest.approx(RETRY_FAILED_AFTER * 1.2)


def test_having_given_up_outlasts_the_window() -> None:
    record = after(6, intensity=INTENSITY)
    assert failed(record, 10 * PERIOD, INTENSITY, PERIOD).gave_up


def test_ten_seconds_of_readiness_forgive_everything() -> None:
    assert forgiven(after(6, intensity=INTENSITY), FORGIVEN_AFTER) == Record()


def test_less_than_ten_seconds_forgive_nothing() -> None:
    record = after(6, intensity=INTENSITY)
    assert forgiven(record, FORGIVEN_AFTER - 0.001) == record


def test_what_is_blocked_is_tried_often_and_is_no_failure() -> None:
    record = after(2)
    delays = []
    for _ in range(8):
        record = blocked(record)
        delays.append(blocked_delay(record, 0.5))
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, LONGEST_BLOCKED, LONGEST_BLOCKED, LONGEST_BLOCKED])
    assert (record.in_a_row, record.times) == (2, after(2).times)


def test_blocked_tries_are_forgotten_with_the_next_failure() -> None:
    assert failed(blocked(blocked(Record())), 0.0, INTENSITY, PERIOD) == after(1)
