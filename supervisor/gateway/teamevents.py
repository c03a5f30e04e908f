"""What happens in a team chat, as HTTP is told of it: each event of the team under the names of this dialect."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import UNSET, Struct

from protocol.errors import PeerError, ProtocolError
from protocol.messages import DoneReason, Timing, Usage
from supervisor.gateway.chat import StatusEvent, ThinkingEvent, TokenEvent, token
from supervisor.gateway.frames import json_line
from supervisor.gateway.problem import code_of
from supervisor.gateway.stream import Stream
from supervisor.gateway.streams import ended_by
from supervisor.gateway.vocabulary import Event, Vocabulary
from supervisor.team.chat import Member, Moderation
from supervisor.team.events import AnyEvent, Asked, Consensus, Entry, Finished, Moderating, Status, Token, Trouble

KIND = "team-chat"
DONE: Event = ("done", b"{}")  # some of the originals' readers take every event's data for JSON


class MemberAnswer(Struct, frozen=True):
    """How one of them ended. `content` is whole, or what had arrived where there is an `error`.

    `specialist_id` is the name as it was asked for, `socket_id` what the specialist calls itself.
    """

    specialist_id: str
    socket_id: str
    content: str
    timestamp: float
    elapsed: float
    done_reason: DoneReason | None
    model: str | None
    timing: Timing | None
    usage: Usage | None
    error: Trouble | None


class TeamAnswer(Struct, frozen=True, kw_only=True):
    """What everybody said: whole answers in the order of their arrival, and those that are not whole. Nobody is in two lists.

    `moderation` is how the moderator ended; `synthesis` or `consensus` is what it said, where that is whole.
    """

    responses: list[MemberAnswer]
    responses_by_id: dict[str, str]
    timed_out: list[MemberAnswer]
    failed: list[MemberAnswer]
    synthesis: str | None
    consensus: Consensus | None
    moderation: MemberAnswer | None
    request_id: str
    elapsed_time: float


class ConnectedEvent(Struct, frozen=True):
    """The first event. `stream_id` is for readers that see no headers."""

    type: str
    message: str
    timestamp: float
    request_id: str
    stream_id: str
    specialists: list[str]


class ProgressEvent(Struct, frozen=True):
    """How many have ended; the moderator is one more."""

    type: str
    stage: Literal["processing", "finalizing"]
    percentage: int
    message: str


class MessageEvent(MemberAnswer, frozen=True):
    """One of them has ended."""

    speaker: str
    round: int
    type: str


class TeamCompleteEvent(Struct, frozen=True):
    """Everybody has ended."""

    type: str
    result: TeamAnswer
    execution_time: float
    timestamp: float


class TeamErrorEvent(Struct, frozen=True):
    """The whole of it was cut short; `responses_by_id` is what had arrived of each."""

    type: str
    error: str
    code: str
    retry_after: float | None
    responses_by_id: dict[str, str]


# -- telling ------------------------------------------------------------------------------------------------------------------


class Telling:
    """What happens in a team, by the names of this dialect."""

    def __init__(self, stream: Stream, members: list[Member], moderation: Moderation | None) -> None:
        self._stream = stream
        self._spelt = {member.name: member.specialist_id for member in members}
        self._moderator = moderation.by.specialist_id if moderation is not None else ""
        self._steps = len(members) + (moderation is not None)
        self._counts: dict[str, int] = {}  # tokens by whose they are, the moderator's own apart
        self._ended = 0

    def tell(self, event: AnyEvent) -> None:
        match event:
            case Token():
                self._token(event)
            case Asked():
                count = len(self._spelt)
                message = f"asking {count} specialist{'s' if count != 1 else ''}"
                stream_id, spelt = self._stream.head.id, list(self._spelt.values())
                self._append(
                    "connected", ConnectedEvent("connected", message, time.time(), event.request_id, stream_id, spelt)
                )
            case Status():
                who = self._spelt.get(event.name, self._moderator)
                self._append("status", StatusEvent("status", who, event.phase, event.position))
            case Entry():
                said = _renamed(event)
                told = MessageEvent(**msgspec.structs.asdict(said), speaker=said.specialist_id, round=1, type="message")
                self._append("message", told)
                self._ended += 1
                self._progress("processing", f"{self._ended} of {len(self._spelt)} have ended")
            case Moderating():
                self._progress("finalizing", f"{event.phase} by {self._moderator}")
            case Finished():
                complete = TeamCompleteEvent("complete", answer_of(event), event.elapsed_time, time.time())
                self._append("complete", complete)
                self._stream.append(*DONE)

    def _token(self, event: Token) -> None:
        self._stream.speaks()
        who = self._moderator if event.phase else self._spelt[event.name]
        if event.thinking:
            self._append("thinking", ThinkingEvent("thinking", who, event.thinking))
        if event.content:
            key = event.phase or event.name
            index = self._counts.get(key, 0)
            self._counts[key] = index + 1
            self._append("token", token(who, event.content, index, event.phase or UNSET))

    def _progress(self, stage: Literal["processing", "finalizing"], message: str) -> None:
        self._append("progress", ProgressEvent("progress", stage, 100 * self._ended // self._steps, message))

    def _append(self, event: str, said: Struct) -> None:
        self._stream.append(event, json_line(said))


def answer_of(finished: Finished) -> TeamAnswer:
    return TeamAnswer(
        responses=[_renamed(entry) for entry in finished.responses],
        responses_by_id=finished.responses_by_id,
        timed_out=[_renamed(entry) for entry in finished.timed_out],
        failed=[_renamed(entry) for entry in finished.failed],
        synthesis=finished.synthesis,
        consensus=finished.consensus,
        moderation=_renamed(finished.moderation) if finished.moderation is not None else None,
        request_id=finished.request_id,
        elapsed_time=finished.elapsed_time,
    )


def _renamed(entry: Entry) -> MemberAnswer:
    return MemberAnswer(
        specialist_id=entry.specialist_id,
        socket_id=entry.socket_id,
        content=entry.content,
        timestamp=entry.timestamp,
        elapsed=entry.elapsed,
        done_reason=entry.done_reason,
        model=entry.model,
        timing=entry.timing,
        usage=entry.usage,
        error=entry.error,
    )


def whole(events: list[Event]) -> TeamAnswer:
    """The answer that a stream's last events tell of. Raises what it failed with."""
    for name, data in events:
        if name == "complete":
            return msgspec.json.decode(data, type=TeamCompleteEvent).result
        if name == "error":
            error = msgspec.json.decode(data, type=TeamErrorEvent)
            raise ended_by(error.code, error.error, retry_after=error.retry_after)
    raise PeerError("the team chat ended without an end")


# -- the vocabulary -----------------------------------------------------------------------------------------------------------


class TeamSoFar(Struct):
    """What has arrived: texts by specialist_id, and what the moderator has said."""

    responses_by_id: dict[str, str]
    moderated: str


class TeamChatReset(Struct, frozen=True):
    """This reader fell behind: `lost` events are gone, and `snapshot` is what they add up to with all before."""

    type: str
    reason: str
    lost: int
    snapshot: TeamSoFar


EVENTS = {
    "connected": (ConnectedEvent,),
    "token": (TokenEvent,),
    "thinking": (ThinkingEvent,),
    "status": (StatusEvent,),
    "progress": (ProgressEvent,),
    "message": (MessageEvent,),
    "complete": (TeamCompleteEvent,),
    "error": (TeamErrorEvent,),
    "done": (DONE[1].decode(),),
    "stream_reset": (TeamChatReset,),
}


def _fold(events: Iterable[Event]) -> TeamSoFar:
    texts: dict[str, list[str]] = {}
    moderated: list[str] = []
    for name, data in events:
        if name == "token":
            piece = msgspec.json.decode(data, type=TokenEvent)
            said = texts.setdefault(piece.specialist_id, []) if piece.phase is UNSET else moderated
            said.append(piece.content)
        elif name == "message":
            ended = msgspec.json.decode(data, type=MessageEvent)
            texts[ended.specialist_id] = [ended.content]
    return TeamSoFar({who: "".join(pieces) for who, pieces in texts.items()}, "".join(moderated))


def _failed(error: ProtocolError, so_far: TeamSoFar) -> list[Event]:
    said = TeamErrorEvent("error", error.sentence, code_of(error), error.retry_after, so_far.responses_by_id)
    return [("error", json_line(said)), DONE]


def _behind(lost: int, so_far: TeamSoFar) -> Event:
    return "stream_reset", json_line(TeamChatReset("stream_reset", "this reader fell behind", lost, so_far))


VOCABULARY = Vocabulary(name=KIND, fold=_fold, failed=_failed, behind=_behind)
