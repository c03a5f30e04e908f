"""Every way of cutting bytes into pieces gives the same lines, at a cost linear in the bytes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any

import pytest

from protocol.errors import LineTooLong
from protocol.framing import LineBuffer

LIMIT = 6
TOO_LONG = None

SAMPLE = (
    b'{"a"}\r\n'  # CR dropped
    b"\n"  # blank
    b"\r\n"  # blank with CR
    b"123456\n"  # the limit
    b"123456\r\n"  # the limit and its CR
    b"1234567\n"  # one over
    b"12345678901234567890\r\n"  # far over
    b"a\rb\r\r\n"  # only the CR before the LF goes
    b"\xff\x00\n"  # not text
    b"last"  # unterminated
)
LINES = [b'{"a"}', b"", b"", b"123456", b"123456", TOO_LONG, TOO_LONG, b"a\rb\r", b"\xff\x00", b"last"]


def take(buffer: LineBuffer) -> list[bytes | None]:
    """What the buffer has to give now; None stands for a line over the limit."""
    taken: list[bytes | None] = []
    for _ in range(20_000):  # more than any test feeds: a buffer that repeats itself shall fail, not hang
        try:
            line = buffer.next_line()
        except LineTooLong:
            taken.append(TOO_LONG)
            continue
        if line is None:
            return taken
        taken.append(line)
    raise AssertionError("the buffer does not come to an end")


def read_all(pieces: Iterable[bytes], limit: int | None = LIMIT) -> list[bytes | None]:
    buffer = LineBuffer(limit)
    lines: list[bytes | None] = []
    for piece in pieces:
        buffer.feed(piece)
        lines += take(buffer)
    last = buffer.last_line()
    return lines if last is None else [*lines, last]


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def test_the_sample_in_one_piece() -> None:
    assert read_all([SAMPLE]) == LINES


def test_the_sample_byte_by_byte() -> None:
    assert read_all(bytewise(SAMPLE)) == LINES


@pytest.mark.parametrize("cut", range(len(SAMPLE) + 1))
def test_the_sample_at_every_cut_point(cut: int) -> None:
    assert read_all([SAMPLE[:cut], SAMPLE[cut:]]) == LINES


def test_the_sample_at_every_pair_of_cut_points() -> None:
    for one, two in combinations(range(len(SAMPLE) + 1), 2):
        assert read_all([SAMPLE[:one], SAMPLE[one:two], SAMPLE[two:]]) == LINES, (one, two)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_may_be_fed(make: type[Any]) -> None:
    assert read_all([make(SAMPLE[:40]), make(SAMPLE[40:])]) == LINES


def test_what_was_fed_may_be_reused_by_its_owner() -> None:
    scratch = bytearray(b"abc")
    buffer = LineBuffer(LIMIT)
    buffer.feed(scratch)
    scratch[:] = b"xyz"
    buffer.feed(b"\n")
    assert buffer.next_line() == b"abc"


@pytest.mark.parametrize("split", [bytewise, lambda data: [data]], ids=["byte by byte", "in one piece"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"x" * 100 + b"\n", b"x" * 100),
        (b"x" * 100 + b"\r\n", b"x" * 100),
        (b"x" * 100, b"x" * 100),
        (b"x" * 100 + b"\r", b"x" * 100),
        (b"x" * 99 + b"\r\r\n", b"x" * 99 + b"\r"),
        (b"x" * 101 + b"\n", TOO_LONG),
        (b"x" * 101 + b"\r\n", TOO_LONG),
        (b"x" * 100 + b"\r\r\n", TOO_LONG),
        (b"x" * 100 + b"\rx\n", TOO_LONG),
        (b"x" * 101, TOO_LONG),
    ],
)
def test_the_limit_is_exact(split: Any, line: bytes, expected: bytes | None) -> None:
    assert read_all(split(line), limit=100) == [expected]


def test_the_line_after_an_over_long_one_is_served() -> None:
    assert read_all(bytewise(b"far too long\nshort\n")) == [TOO_LONG, b"short"]


def test_every_over_long_line_is_reported_once() -> None:
    assert read_all([b"x" * 7] * 100 + [b"\n"] + [b"y" * 7] * 100) == [TOO_LONG, TOO_LONG]


def test_an_over_long_line_is_reported_before_it_ends() -> None:
    buffer = LineBuffer(LIMIT)
    buffer.feed(b"1234567")
    with pytest.raises(LineTooLong, match="6 bytes"):
        buffer.next_line()
    assert buffer.next_line() is None


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_an_over_long_line_tells_how_it_began(end: bytes) -> None:
    buffer = LineBuffer(100)
    buffer.feed(b"{" + b"x" * 200 + end)
    with pytest.raises(LineTooLong) as caught:
        buffer.next_line()
    assert caught.value.start == b"{" + b"x" * 63


def test_a_cr_at_the_limit_waits_for_its_lf() -> None:
    buffer = LineBuffer(LIMIT)
    buffer.feed(b"123456\r")
    assert buffer.next_line() is None
    buffer.feed(b"\n")
    assert buffer.next_line() == b"123456"


def test_no_limit_means_none() -> None:
    assert read_all([b"x" * 3_000_000, b"\n"], limit=None) == [b"x" * 3_000_000]


def test_nothing_is_left_at_the_end_of_complete_input() -> None:
    assert read_all([b"a\n"]) == [b"a"]
    assert read_all([]) == []
    assert read_all([b"\r"]) == []


def test_the_end_of_input_ends_an_over_long_line() -> None:
    buffer = LineBuffer(LIMIT)
    buffer.feed(b"far too long")
    assert take(buffer) == [TOO_LONG]
    assert buffer.last_line() is None
    buffer.feed(b"next\n")
    assert buffer.next_line() == b"next"


def test_memory_stays_flat_while_no_lf_comes() -> None:
    limit, piece = 1024 * 1024, b"x" * 65_536
    buffer = LineBuffer(limit)
    most, too_long = 0, 0
    for _ in range(50_000_000 // len(piece)):
        buffer.feed(piece)
        most = max(most, len(buffer))
        too_long += len(take(buffer))
    assert too_long == 1
    assert most <= limit + len(piece)
    assert len(buffer) == 0


class CountingBytes(bytearray):
    """A bytearray that counts the bytes which `find` had to look at."""

    scanned = 0

    def find(self, *args: Any, **kwargs: Any) -> int:
        start = args[1] if len(args) > 1 else 0
        found = super().find(*args, **kwargs)
        self.scanned += (found + 1 if found >= 0 else len(self)) - start
        return found


@pytest.mark.parametrize("mebibytes", [4, 16])
def test_a_long_line_in_small_pieces_is_searched_once(mebibytes: int) -> None:
    counting = CountingBytes()
    buffer = LineBuffer(None)
    buffer._data = counting
    size = mebibytes * 1024 * 1024
    for _ in range(size // 1024):
        buffer.feed(b"x" * 1024)
        assert buffer.next_line() is None
    buffer.feed(b"\n")
    line = buffer.next_line()
    assert line is not None
    assert len(line) == size
    assert buffer._data is counting
    assert counting.scanned == size + 1


def test_many_lines_in_one_piece_are_searched_once() -> None:
    counting = CountingBytes()
    buffer = LineBuffer(LIMIT)
    buffer._data = counting
    buffer.feed(b"12345\n" * 10_000)
    assert take(buffer) == [b"12345"] * 10_000
    assert counting.scanned == 60_000
