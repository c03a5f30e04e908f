"""Server-sent events as bytes, and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.gateway.frames import COMMENT, RETRY, fields, frame, json_line

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.from_regex(r"[a-z_]{0,20}", fullmatch=True)
CURSORS = st.from_regex(r"([0-9a-f]{16}-[0-9]{1,18})?", fullmatch=True)
SEPARATORS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # all that str.splitlines() takes for the end of a line


def test_a_frame_is_written_as_the_standard_has_it() -> None:
    assert frame("token", b'{"a":1}', "e1-7") == b'id: e1-7\nevent: token\ndata: {"a":1}\n\n'


def test_without_a_cursor_a_reader_keeps_its_place() -> None:
    assert frame("stream_reset", b"{}") == b"event: stream_reset\ndata: {}\n\n"


def test_without_a_name_it_is_a_message() -> None:
    assert frame("", b"[DONE]", "e1-0") == b"id: e1-0\ndata: [DONE]\n\n"


def test_empty_data_is_still_dispatched() -> None:
    """A block without any `data:` is silent in every browser; one with an empty one fires."""
    assert frame("done", b"") == b"event: done\ndata: \n\n"


def test_neither_comment_nor_retry_is_an_event_by_itself() -> None:
    """Some readers take every blank line for one."""
    assert COMMENT == b":\n"
    assert RETRY == b"retry: 500\n"


@given(name=NAMES, value=ANYTHING, cursor=CURSORS)
def test_what_goes_into_a_frame_comes_out_of_it(name: str, value: object, cursor: str) -> None:
    one = frame(name, json_line(value), cursor)
    got, data = fields(one)
    assert got == name
    assert json.loads(data) == value
    assert one.endswith(b"\n\n")
    assert one.count(b"\n\n") == 1


@given(value=ANYTHING)
def test_json_is_one_line_for_everybody_who_reads_lines(value: object) -> None:
    line = json_line(value)
    assert line.decode().splitlines() == [line.decode()]
    assert line.splitlines() == [line]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_separator_in_a_text_is_escaped_and_comes_back(separator: str) -> None:
    text = f"one{separator}two é"
    line = json_line({"token": text})
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line) == {"token": text}


@given(text=st.text(st.sampled_from("aé\u2028\u2029\x85\\u208"), max_size=30))
def test_a_text_that_looks_like_an_escape_is_none(text: str) -> None:
    assert json.loads(json_line(text)) == text
