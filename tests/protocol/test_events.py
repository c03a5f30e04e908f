"""Every way of cutting bytes into pieces gives the same events, and what never ends is given up."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import pytest
from event_vectors import VECTORS

from protocol.errors import WrongReply
from protocol.events import Event, EventBuffer


def read_all(pieces: Iterable[bytes], limit: int = 1000) -> tuple[list[Event], str, float | None]:
    buffer = EventBuffer(limit)
    events = []
    for piece in pieces:
        buffer.feed(piece)
        while (event := buffer.next_event()) is not None:
            events.append(event)
    return events, buffer.last_id, buffer.retry


@pytest.mark.parametrize("name", VECTORS)
def test_bytes_mean_what_the_standard_says(name: str) -> None:
    data, events = VECTORS[name]
    assert read_all([data])[0] == events


@pytest.mark.parametrize("name", VECTORS)
def test_cutting_changes_nothing(name: str) -> None:
    data, _ = VECTORS[name]
    whole = read_all([data])
    assert read_all([data[at : at + 1] for at in range(len(data))]) == whole
    for one, two in combinations(range(len(data) + 1), 2):
        assert read_all([data[:one], data[one:two], data[two:]]) == whole, (one, two)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_an_event_is_there_with_its_last_byte(end: bytes) -> None:
    data = b"data: a" + end + end
    buffer = EventBuffer(100)
    for at in range(len(data)):
        assert buffer.next_event() is None
        buffer.feed(data[at : at + 1])
        if at == len(data) - len(end):  # of CRLF the CR says it already
            break
    assert buffer.next_event() == Event("message", "a", "")


@pytest.mark.parametrize(
    ("data", "last_id"),
    [
        (b"id: 1\ndata: a\n\n", "1"),
        (b"id: 1\n\n", "1"),
        (b"id: 1\n", "kept"),
        (b"id: 1\ndata: a\n", "kept"),
        (b"id: \xc3\xa4\n\n", "ä"),
        (b"id\n\n", ""),
        (b"data: a\n\n", "kept"),
    ],
)
def test_the_cursor_is_that_of_the_last_whole_block(data: bytes, last_id: str) -> None:
    buffer = EventBuffer(100, last_id="kept")
    buffer.feed(data)
    buffer.next_event()
    assert buffer.last_id == last_id


@pytest.mark.parametrize(
    ("line", "retry"),
    [
        (b"retry: 500", 0.5),
        (b"retry:0", 0.0),
        (b"retry: 000000000000000000002000", 2.0),
        (b"retry: 99999999999999999999999999", 999_999_999.999),
        (b"retry: " + b"9" * 900, 999_999_999.999),
        (b"retry: 5.0", None),
        (b"retry: -5", None),
        (b"retry:  5", None),
        (b"retry: 5 ", None),
        ("retry: ٥".encode(), None),
        (b"retry:", None),
        (b"retry", None),
    ],
)
def test_retry_is_digits_and_nothing_else(line: bytes, retry: float | None) -> None:
    assert read_all([line + b"\n\n"])[2] == retry


@pytest.mark.parametrize("endless", [b"data: " + b"x" * 95, b": " + b"x" * 99, b"x" * 101, b"data: xxxxxxx\n" * 13])
@pytest.mark.parametrize("cut", [1, 1000])
def test_what_never_ends_is_given_up_at_the_limit(endless: bytes, cut: int) -> None:
    with pytest.raises(WrongReply, match="longer than 100 bytes"):
        read_all([endless[at : at + cut] for at in range(0, len(endless), cut)], limit=100)


def test_a_line_at_the_limit_is_taken() -> None:
    assert read_all([b"data: " + b"x" * 94 + b"\n\n"], limit=100)[0] == [Event("message", "x" * 94, "")]
