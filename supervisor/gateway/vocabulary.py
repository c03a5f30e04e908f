"""What every vocabulary of streamed events can say of itself: what its events add up to, and how its streams end in failure.

A stream is followed, kept and resumed without a look at its events. Only for a reader that fell behind, and for work that did
not end by itself, must somebody know what they mean; each dialect gives one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from msgspec import Struct

from protocol.errors import ProtocolError

Event = tuple[str, bytes]  # its name, and its data as a line of JSON


class Vocabulary(Struct, frozen=True, kw_only=True):
    """One dialect.

    `fold` gives what all events of a stream so far add up to, fit for JSON: the text of an answer, say. `failed` gives the
    events that end a stream whose work failed, from the error and the fold. `behind` gives the event for a reader that lacks
    events which are gone, from their number and the fold; None where the dialect has no word for it: such a reader is given
    them from disk, or let go.
    """

    name: str
    fold: Callable[[Iterable[Event]], Any]
    failed: Callable[[ProtocolError, Any], list[Event]]
    behind: Callable[[int, Any], Event] | None = None
