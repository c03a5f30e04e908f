"""The states of a specialist, as the supervisor sees them, and the steps between them. Pure.

Wanted and actual are two things: `Wanted` is what an operator asked for, `State` is what is. This table moves only the
second. An event that cannot come in a state is a mistake of ours and raises; `tests` go through every pair.
"""

from __future__ import annotations

from enum import Enum


class Wanted(Enum):
    """What was asked for."""

    UP = "up"  # a process that answers
    DOWN = "down"  # no process, and the port closed
    DRAINED = "drained"  # a process that stays and refuses new requests


class State(Enum):
    """What is."""

    STOPPED = "stopped"  # no process, nobody behind the port
    STARTING = "starting"  # a process, no answer from it yet
    READY = "ready"  # it answers, and so does the model server
    DEGRADED = "degraded"  # it answers; the model server does not
    HUNG = "hung"  # a process that does not answer any more; about to be replaced
    BACKING_OFF = "backing_off"  # it ended or could not start; the next try has a time
    FAILED = "failed"  # it ended too often; tries go on, slowly
    STOPPING = "stopping"  # asked to end, finishing what is under way
    DRAINING = "draining"  # answers health, refuses new requests


class Event(Enum):
    """What happened."""

    FORKED = "forked"  # a process was started
    HEALTHY = "healthy"  # it answered, all is well
    UNWELL = "unwell"  # it answered: the model server is unreachable or lacks the model
    SILENT = "silent"  # no answer for too long
    EXITED = "exited"  # it ended, and nobody had asked it to
    BLOCKED = "blocked"  # it could not be started: the port is taken
    GAVE_UP = "gave_up"  # too many of those, or its restart policy has it so
    DRAIN = "drain"  # asked to refuse new requests
    STOP = "stop"  # asked to end
    ENDED = "ended"  # it ended as asked
    ABANDONED = "abandoned"  # there was no process, and none is wanted any more


ANSWERING = frozenset({State.READY, State.DEGRADED})  # `up` and `start` wait for one of these
RUNNING = frozenset({State.STARTING, State.READY, State.DEGRADED, State.HUNG, State.DRAINING})


def _steps() -> dict[tuple[State, Event], State]:
    steps: dict[tuple[State, Event], State] = {
        (State.STOPPED, Event.FORKED): State.STARTING,
        (State.STOPPED, Event.BLOCKED): State.BACKING_OFF,
        (State.STOPPED, Event.ABANDONED): State.STOPPED,
        (State.STOPPED, Event.GAVE_UP): State.FAILED,  # it was kept down before this keeper was there
        (State.BACKING_OFF, Event.FORKED): State.STARTING,
        (State.BACKING_OFF, Event.BLOCKED): State.BACKING_OFF,
        (State.BACKING_OFF, Event.GAVE_UP): State.FAILED,
        (State.BACKING_OFF, Event.ABANDONED): State.STOPPED,
        (State.FAILED, Event.FORKED): State.STARTING,
        (State.FAILED, Event.BLOCKED): State.BACKING_OFF,
        (State.FAILED, Event.ABANDONED): State.STOPPED,
        (State.STOPPING, Event.ENDED): State.STOPPED,
        (State.STOPPING, Event.FORKED): State.STARTING,  # asked for again before the old one was gone
        # Draining is kept while it answers, whatever the model server does.
        (State.DRAINING, Event.HEALTHY): State.DRAINING,
        (State.DRAINING, Event.UNWELL): State.DRAINING,
        (State.STOPPING, Event.HEALTHY): State.STOPPING,
        (State.STOPPING, Event.UNWELL): State.STOPPING,
        (State.STOPPING, Event.SILENT): State.STOPPING,
    }
    for state in RUNNING:
        steps[state, Event.FORKED] = State.STARTING  # a successor took its place
        steps[state, Event.EXITED] = State.BACKING_OFF
        steps[state, Event.BLOCKED] = State.BACKING_OFF  # it left its port, and the next one is still taken
        steps[state, Event.STOP] = State.STOPPING
        steps[state, Event.SILENT] = State.HUNG
        steps[state, Event.DRAIN] = State.DRAINING
        steps.setdefault((state, Event.HEALTHY), State.READY)
        steps.setdefault((state, Event.UNWELL), State.DEGRADED)
    return steps


STEPS = _steps()


class ImpossibleStep(Exception):
    """An event came in a state where it cannot: a mistake in the supervisor, never in what it supervises."""


def next_state(state: State, event: Event) -> State:
    """The state after an event; raises ImpossibleStep where the table has a hole."""
    try:
        return STEPS[state, event]
    except KeyError:
        raise ImpossibleStep(f"{event.name} cannot come while {state.name}") from None
