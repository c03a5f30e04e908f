"""A reader's place in a stream, through restarts of whoever writes it."""

from __future__ import annotations

import time

import pytest

from supervisor.gateway.frames import frame
from supervisor.gateway.record import Head, Restored
from supervisor.gateway.stream import Cursor, Stream


def stream(count: int, **epochs: int) -> Stream:
    """One of so many events; each epoch with the number of its first one."""
    head = Head(id="s", kind="chat", created=0.0)
    frames = [frame("token", b"{}", f"e-{number}") for number in range(count)]
    return Stream(
        head, restored=Restored(head=head, epochs=epochs, frames=frames, ended=time.time(), failed=True, size=0)
    )


@pytest.mark.parametrize(
    ("epochs", "cursor", "place"),
    [
        ({"a": 0}, Cursor("a", 0), 1),
        ({"a": 0}, Cursor("a", 4), 5),
        ({"a": 0}, Cursor("a", 9), 5),
        ({"a": 0, "b": 3}, Cursor("a", 1), 2),
        ({"a": 0, "b": 3}, Cursor("a", 2), 3),
        ({"a": 0, "b": 3}, Cursor("a", 4), 3),  # read what a full disk did not take: the rest is what b wrote
        ({"a": 0, "b": 3}, Cursor("b", 3), 4),
        ({"a": 0, "b": 0}, Cursor("a", 2), 0),  # the disk took nothing
        ({"a": 0, "b": 3, "c": 3}, Cursor("a", 7), 3),
        ({"a": 0, "b": 3, "c": 3}, Cursor("b", 7), 3),
        ({"a": 0, "b": 3, "c": 3}, Cursor("c", 3), 4),
        ({"a": 0, "b": 3}, Cursor("c", 3), None),
    ],
)
async def test_a_reader_has_all_that_follows_its_cursor(
    epochs: dict[str, int], cursor: Cursor, place: int | None
) -> None:
    assert stream(5, **epochs).place(cursor) == place
