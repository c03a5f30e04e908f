from __future__ import annotations

import pytest

from supervisor.fleet.lifecycle import ANSWERING, RUNNING, STEPS, Event, ImpossibleStep, State, next_state

S, E = State, Event
SAME_FOR_ALL_THAT_RUN = {
    E.FORKED: S.STARTING,
    E.EXITED: S.BACKING_OFF,
    E.BLOCKED: S.BACKING_OFF,
    E.STOP: S.STOPPING,
    E.SILENT: S.HUNG,
    E.DRAIN: S.DRAINING,
}
ANSWERS = {E.HEALTHY: S.READY, E.UNWELL: S.DEGRADED}
EXPECTED: dict[State, dict[Event, State]] = {
    S.STOPPED: {E.FORKED: S.STARTING, E.BLOCKED: S.BACKING_OFF, E.ABANDONED: S.STOPPED, E.GAVE_UP: S.FAILED},
    S.STARTING: SAME_FOR_ALL_THAT_RUN | ANSWERS,
    S.READY: SAME_FOR_ALL_THAT_RUN | ANSWERS,
    S.DEGRADED: SAME_FOR_ALL_THAT_RUN | ANSWERS,
    S.HUNG: SAME_FOR_ALL_THAT_RUN | ANSWERS,
    S.DRAINING: SAME_FOR_ALL_THAT_RUN | {E.HEALTHY: S.DRAINING, E.UNWELL: S.DRAINING},
    S.BACKING_OFF: {
        E.FORKED: S.STARTING,
        E.BLOCKED: S.BACKING_OFF,
        E.GAVE_UP: S.FAILED,
        E.ABANDONED: S.STOPPED,
    },
    S.FAILED: {E.FORKED: S.STARTING, E.BLOCKED: S.BACKING_OFF, E.ABANDONED: S.STOPPED},
    S.STOPPING: {
        E.ENDED: S.STOPPED,
        E.FORKED: S.STARTING,
        E.HEALTHY: S.STOPPING,
        E.UNWELL: S.STOPPING,
        E.SILENT: S.STOPPING,
    },
}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_every_event_in_every_state_leads_where_it_should_or_is_refused(state: State, event: Event) -> None:
    expected = EXPECTED[state].get(event)
    if expected is None:
        with pytest.raises(ImpossibleStep, match=f"{event.name} cannot come while {state.name}"):
            next_state(state, event)
    else:
        assert next_state(state, event) is expected


def test_every_state_can_be_reached_from_stopped() -> None:
    reached = {State.STOPPED}
    while more := {to for (state, _), to in STEPS.items() if state in reached} - reached:
        reached |= more
    assert reached == set(State)


@pytest.mark.parametrize("state", State)
def test_from_every_state_there_is_a_way_to_stopped(state: State) -> None:
    reached = {state}
    while more := {to for (at, _), to in STEPS.items() if at in reached} - reached:
        reached |= more
    assert State.STOPPED in reached


def test_whoever_answers_runs() -> None:
    assert ANSWERING < RUNNING
