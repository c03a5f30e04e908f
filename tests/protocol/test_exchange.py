"""Every state meets every event; nothing follows the end; chunks have no gap."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from protocol import messages
from protocol.errors import WrongReply
from protocol.exchange import STEPS, Event, Exchange, State, event_of, next_state
from protocol.messages import StreamChunk, StreamEnd, StreamStart, Timing

ALLOWED = {
    (State.ASKED, Event.WHOLE): State.DONE,
    (State.ASKED, Event.REFUSED): State.FAILED,
    (State.ASKED, Event.START): State.STREAMING,
    (State.STREAMING, Event.SIGN): State.STREAMING,
    (State.STREAMING, Event.CHUNK): State.STREAMING,
    (State.STREAMING, Event.END): State.DONE,
    (State.STREAMING, Event.BROKEN): State.FAILED,
}
ANSWER: dict[str, Any] = {
    "ai_id": "apollo-ci",
    "model": "m",
    "context": {},
    "timing": Timing(queued_ms=0.0, total_ms=1.0),
    "latency": 0.001,
    "done_reason": "stop",
}
START = StreamStart(ai_id="apollo-ci", model="m")
END = StreamEnd(**ANSWER, metadata={})
REPLIES: dict[Event, list[messages.Reply]] = {
    Event.WHOLE: [
        messages.ChatResponse(**ANSWER),
        messages.Pong(ai_id="a", status="ok", pid=1, instance="i"),
        messages.ResetResponse(session_id=None, removed=0),
        messages.Cancelled(target=1),
        messages.HistoryResponse(conversations=[], total=0),
        messages.EmbedResponse(embeddings=[], model="m"),
    ],
    Event.REFUSED: [messages.Error(code="busy", error="wait", partial="")],
    Event.START: [START],
    Event.SIGN: [messages.Heartbeat(), messages.StreamStatus(phase="queued", position=3)],
    Event.CHUNK: [StreamChunk(chunk_index=0, content="a"), StreamChunk(chunk_index=0, thinking="b")],
    Event.END: [END],
    Event.BROKEN: [messages.StreamError(code="stalled", error="silent", partial="")],
}
PAIRS = list(product(State, Event))


def exchange_in(state: State) -> Exchange:
    exchange = Exchange()
    exchange.state = state
    return exchange


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=str)
def test_every_state_and_event(state: State, event: Event) -> None:
    if (state, event) in ALLOWED:
        assert next_state(state, event) is ALLOWED[state, event]
    else:
        with pytest.raises(WrongReply, match=f"{event.name} cannot follow {state.name}"):
            next_state(state, event)


def test_the_table_has_no_other_steps() -> None:
    assert STEPS == ALLOWED


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=str)
def test_an_exchange_takes_the_same_steps(state: State, event: Event) -> None:
    for reply in REPLIES[event]:
        exchange = exchange_in(state)
        assert event_of(reply) is event
        if (state, event) in ALLOWED:
            exchange.advance(reply)
            assert exchange.state is ALLOWED[state, event]
        else:
            with pytest.raises(WrongReply):
                exchange.advance(reply)
            assert exchange.state is state


def test_nothing_follows_the_end() -> None:
    for state, replies in product((State.DONE, State.FAILED), REPLIES.values()):
        for reply in replies:
            exchange = exchange_in(state)
            assert exchange.over
            with pytest.raises(WrongReply):
                exchange.advance(reply)


@pytest.mark.parametrize("state", [State.ASKED, State.STREAMING])
def test_an_exchange_is_not_over_before_its_end(state: State) -> None:
    assert not exchange_in(state).over


def test_a_whole_stream() -> None:
    exchange = Exchange()
    exchange.advance(START)
    for reply in REPLIES[Event.SIGN]:
        exchange.advance(reply)
    for index in range(5):
        exchange.advance(StreamChunk(chunk_index=index, content="x"))
        exchange.advance(messages.Heartbeat())
    exchange.advance(END)
    assert (exchange.state, exchange.chunks) == (State.DONE, 5)


def test_a_stream_may_end_without_a_chunk() -> None:
    exchange = Exchange()
    exchange.advance(START)
    exchange.advance(END)
    assert exchange.state is State.DONE


@pytest.mark.parametrize("index", [-1, 0, 1, 3, 4])
def test_a_gap_between_chunks_is_noticed(index: int) -> None:
    exchange = Exchange()
    exchange.advance(START)
    exchange.advance(StreamChunk(chunk_index=0, content="a"))
    exchange.advance(StreamChunk(chunk_index=1, content="b"))
    with pytest.raises(WrongReply, match=f"chunk {index} came where 2 was due"):
        exchange.advance(StreamChunk(chunk_index=index, content="c"))


def test_the_first_chunk_is_number_zero() -> None:
    exchange = Exchange()
    exchange.advance(START)
    with pytest.raises(WrongReply, match="chunk 1 came where 0 was due"):
        exchange.advance(StreamChunk(chunk_index=1, content="a"))
