"""The codes are a closed set, and lead both ways."""

from __future__ import annotations

import inspect

import pytest

from protocol import errors
from protocol.codec import error_reply, raise_for, stream_error
from protocol.errors import ProtocolError

WIRE_CODES = {
    "bad_json", "bad_request", "unknown_type", "line_too_long", "not_found", "forbidden",
    "busy", "backend_down", "model_missing", "model_error", "truncated", "stalled",
    "context_overflow", "empty_answer", "deadline", "draining", "unavailable", "internal",
}  # fmt: skip

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, ProtocolError) and cls.__module__ == errors.__name__
]
FAMILIES = {ProtocolError, errors.CallerError, errors.HouseError, errors.ModelServerError, errors.PeerError}


def test_the_codes_are_the_wires() -> None:
    assert set(errors.BY_CODE) == WIRE_CODES


def test_every_class_with_a_code_is_in_the_table_and_no_code_is_used_twice() -> None:
    with_code = [cls for cls in CLASSES if cls.code]
    assert sorted(cls.code for cls in with_code) == sorted(errors.BY_CODE)
    assert set(with_code) == set(errors.BY_CODE.values())


def test_only_families_and_what_a_client_meets_have_no_code() -> None:
    for cls in CLASSES:
        assert bool(cls.code) != (cls in FAMILIES or issubclass(cls, errors.PeerError)), cls


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    for cls in CLASSES:
        assert cls.__name__ in (errors.__doc__ or "")
    for code in errors.BY_CODE:
        assert f" {code} " in (errors.__doc__ or "")


@pytest.mark.parametrize("code", sorted(WIRE_CODES))
def test_a_code_leads_to_its_class_and_back(code: str) -> None:
    error = errors.from_wire(code, "what; do this", "par", 1.5)
    assert type(error) is errors.BY_CODE[code]
    assert (error.code, error.sentence, error.partial, error.retry_after) == (
        code,
        "what; do this",
        "par",
        1.5,
    )
    assert str(error) == "what; do this"


@pytest.mark.parametrize("code", sorted(WIRE_CODES))
@pytest.mark.parametrize("make", [error_reply, stream_error])
def test_an_error_survives_the_wire(make: object, code: str) -> None:
    before = errors.BY_CODE[code]("what; do this", partial="par", retry_after=2.0)
    reply = make(before, "r1", "apollo-ci")  # type: ignore[operator]
    assert (reply.request_id, reply.ai_id) == ("r1", "apollo-ci")
    with pytest.raises(ProtocolError) as caught:
        raise_for(reply)
    assert type(caught.value) is type(before)
    assert (str(caught.value), caught.value.partial, caught.value.retry_after) == (
        "what; do this",
        "par",
        2.0,
    )


@pytest.mark.parametrize("code", ["", "from_the_future", "BUSY"])
def test_an_unknown_code_is_internal(code: str) -> None:
    error = errors.from_wire(code, "hm")
    assert type(error) is errors.Internal
    assert (error.partial, error.retry_after) == ("", None)


def test_an_over_long_line_names_its_limit_and_the_setting() -> None:
    assert "1048576 bytes" in str(errors.LineTooLong.over(1_048_576))
    assert "max_line_bytes" in str(errors.LineTooLong.over(1_048_576))
