"""What happens while a team works: the one vocabulary inside. Every dialect outside is a renaming of it.

Durations are in seconds, `at` is a Unix time. Names are canonical; `specialist_id` is what the outside calls them.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from protocol.messages import DoneReason, Phase, Timing, Usage

ModerationPhase = Literal["synthesis", "consensus"]


class TeamEvent(Struct, frozen=True, tag_field="event", omit_defaults=True):
    """Something that happened in one team chat."""


class Asked(TeamEvent, frozen=True, tag="asked", kw_only=True):
    """The first event: who is asked."""

    request_id: str
    specialists: list[str]


class Status(TeamEvent, frozen=True, tag="status", kw_only=True):
    """One of them waits, and this is why."""

    name: str
    phase: Phase
    position: int | None = None


class Token(TeamEvent, frozen=True, tag="token", kw_only=True):
    """A piece of one answer: content, or thinking in place of it. With a `phase` it is what the moderator says."""

    name: str
    content: str = ""
    thinking: str = ""
    phase: ModerationPhase | None = None


class Trouble(Struct, frozen=True):
    """Why one of them has no whole answer: the wire's code and sentence."""

    code: str
    error: str


class Entry(TeamEvent, frozen=True, tag="answer", kw_only=True):
    """How one of them ended. `content` is whole, or what had arrived when `error` is set.

    `specialist_id` is the name as the caller spelt it, `socket_id` what the specialist calls itself. `done_reason` is
    "cancelled" for one that ran into a limit of ours.
    """

    name: str
    specialist_id: str
    socket_id: str
    content: str
    timestamp: float
    elapsed: float
    done_reason: DoneReason | None = None
    model: str | None = None
    timing: Timing | None = None
    usage: Usage | None = None
    error: Trouble | None = None


class Moderating(TeamEvent, frozen=True, tag="moderating", kw_only=True):
    """Everybody has ended, and one of them is asked what to make of it."""

    name: str
    phase: ModerationPhase


class Consensus(Struct, frozen=True):
    """How far they agree, in the moderator's words; `by` is its specialist_id."""

    text: str
    by: str


class Finished(TeamEvent, frozen=True, tag="finished", kw_only=True):
    """The last event. `responses` are the whole answers in the order of their arrival; nobody is in two of the three lists.

    `moderation` is how the moderator ended; `synthesis` or `consensus` is what it said, where that is whole.
    """

    request_id: str
    responses: list[Entry]
    responses_by_id: dict[str, str]
    timed_out: list[Entry]
    failed: list[Entry]
    elapsed_time: float
    synthesis: str | None = None
    consensus: Consensus | None = None
    moderation: Entry | None = None


AnyEvent = Asked | Status | Token | Entry | Moderating | Finished
