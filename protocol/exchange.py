"""One request and its replies, as a state machine. Both ends use it: the daemon to keep its promise, the client to check it.

A request is answered by one whole reply, or refused by one error, or streamed: one `stream_start`, then chunks whose
index counts from 0 without a gap, then exactly one `stream_end` or `stream_error`. Nothing follows the end.
"""

from __future__ import annotations

from enum import Enum, auto

from protocol.errors import WrongReply
from protocol.messages import (
    Error,
    Heartbeat,
    Reply,
    StreamChunk,
    StreamEnd,
    StreamError,
    StreamStart,
    StreamStatus,
)


class State(Enum):
    """How far a request has come."""

    ASKED = auto()  # sent, nothing came back
    STREAMING = auto()  # stream_start came
    DONE = auto()  # answered whole, or stream_end
    FAILED = auto()  # refused, or stream_error


class Event(Enum):
    """What a reply means for its request."""

    WHOLE = auto()  # any reply that is an answer by itself
    REFUSED = auto()  # error
    START = auto()  # stream_start
    SIGN = auto()  # stream_status or heartbeat: alive, no answer yet
    CHUNK = auto()  # stream_chunk
    END = auto()  # stream_end
    BROKEN = auto()  # stream_error


STEPS: dict[tuple[State, Event], State] = {
    (State.ASKED, Event.WHOLE): State.DONE,
    (State.ASKED, Event.REFUSED): State.FAILED,
    (State.ASKED, Event.START): State.STREAMING,
    (State.STREAMING, Event.SIGN): State.STREAMING,
    (State.STREAMING, Event.CHUNK): State.STREAMING,
    (State.STREAMING, Event.END): State.DONE,
    (State.STREAMING, Event.BROKEN): State.FAILED,
}

OVER = (State.DONE, State.FAILED)  # no set: asked at every token, and a member of an Enum is hashed in Python

_EVENTS: dict[type[Reply], Event] = {
    Error: Event.REFUSED,
    StreamStart: Event.START,
    StreamStatus: Event.SIGN,
    Heartbeat: Event.SIGN,
    StreamChunk: Event.CHUNK,
    StreamEnd: Event.END,
    StreamError: Event.BROKEN,
}


def event_of(reply: Reply) -> Event:
    """What this reply means for the request that it answers."""
    return _EVENTS.get(type(reply), Event.WHOLE)


def next_state(state: State, event: Event) -> State:
    """The state after an event; raises WrongReply where the protocol has no such step."""
    try:
        return STEPS[state, event]
    except KeyError:
        raise WrongReply(f"a reply of kind {event.name} cannot follow {state.name}") from None


class Exchange:
    """The state of one request. Written by whoever reads or writes its replies, in their order."""

    def __init__(self) -> None:
        self.state = State.ASKED
        self.chunks = 0

    @property
    def over(self) -> bool:
        return self.state in OVER

    def advance(self, reply: Reply) -> None:
        """Takes the next reply; raises WrongReply for one that cannot come here."""
        if type(reply) is StreamChunk and self.state is State.STREAMING:  # by far the most frequent
            if reply.chunk_index != self.chunks:
                raise WrongReply(f"chunk {reply.chunk_index} came where {self.chunks} was due")
            self.chunks += 1
            return
        self.state = next_state(self.state, event_of(reply))
