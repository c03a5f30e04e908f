"""Everything that can go wrong with a request, sorted by guilt.

    ProtocolError
    ├── CallerError             whoever asked must change the request
    │   ├── BadJson             bad_json           the line is not JSON, or not UTF-8
    │   ├── BadRequest          bad_request        JSON of the wrong shape
    │   ├── UnknownType         unknown_type       a type nobody here knows
    │   ├── LineTooLong         line_too_long      a line over max_line_bytes
    │   ├── NotFound            not_found          nothing of that name
    │   ├── Forbidden           forbidden          another user of this machine
    │   ├── ContextOverflow     context_overflow   the prompt does not fit and nothing may be cut
    │   └── DeadlinePassed      deadline           the caller's own deadline passed
    ├── HouseError              we cannot do it, now or at all
    │   ├── Busy                busy               our own limit, or the model server says it is busy
    │   ├── Draining            draining           this specialist is going away
    │   ├── Unavailable         unavailable        the supervisor answers in its place
    │   └── Internal            internal           our fault; the log has the trace id
    ├── ModelServerError        the world behind us
    │   ├── BackendDown         backend_down       refuses, cannot be reached, closes before the first token
    │   ├── ModelMissing        model_missing      does not have the model
    │   ├── ModelError          model_error        500, an error line, a reset after the first token
    │   ├── Truncated           truncated          ended without saying that it was done
    │   ├── Stalled             stalled            no first byte, or silence, for too long
    │   └── EmptyAnswer         empty_answer       done, and not one character
    └── PeerError               what the client of this package meets; no code, never on the wire
        ├── Refused                                nobody listens there
        ├── SelfConnection                         the kernel connected us to ourselves
        ├── ConnectionLost                         the connection ended before the answer did
        └── WrongReply                             the peer broke the protocol

Each class carries its wire `code`; `from_wire` is the way back. The sentence says what happened and what to do.
"""

from __future__ import annotations

from typing import ClassVar, Self


class ProtocolError(Exception):
    """One failure: a sentence for people, a code for programs.

    `partial` is what had arrived of the answer. `retry_after` is in seconds, where waiting helps.
    """

    code: ClassVar[str] = ""

    def __init__(self, sentence: str, *, partial: str = "", retry_after: float | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.partial = partial
        self.retry_after = retry_after


class CallerError(ProtocolError):
    """Whoever asked must change the request."""


class BadJson(CallerError):
    code = "bad_json"


class BadRequest(CallerError):
    code = "bad_request"


class UnknownType(CallerError):
    code = "unknown_type"


class LineTooLong(CallerError):
    """`start` is how the line began: enough to tell JSON from plain text."""

    code = "line_too_long"
    start: bytes = b""

    @classmethod
    def over(cls, limit: int, start: bytes = b"") -> Self:
        error = cls(
            f"the line is longer than {limit} bytes and was thrown away: send less, or raise limits.max_line_bytes"
        )
        error.start = start
        return error


class NotFound(CallerError):
    code = "not_found"


class Forbidden(CallerError):
    code = "forbidden"


class ContextOverflow(CallerError):
    code = "context_overflow"


class DeadlinePassed(CallerError):
    code = "deadline"


class HouseError(ProtocolError):
    """We cannot do it."""


class Busy(HouseError):
    code = "busy"


class Draining(HouseError):
    code = "draining"


class Unavailable(HouseError):
    code = "unavailable"


class Internal(HouseError):
    code = "internal"


class ModelServerError(ProtocolError):
    """The model server did not do its part."""


class BackendDown(ModelServerError):
    code = "backend_down"


class ModelMissing(ModelServerError):
    code = "model_missing"


class ModelError(ModelServerError):
    code = "model_error"


class Truncated(ModelServerError):
    code = "truncated"


class Stalled(ModelServerError):
    code = "stalled"


class EmptyAnswer(ModelServerError):
    code = "empty_answer"


class PeerError(ProtocolError):
    """What a client meets on its own side of the connection."""


class Refused(PeerError):
    pass


class SelfConnection(Refused):
    pass


class ConnectionLost(PeerError):
    pass


class WrongReply(PeerError):
    pass


BY_CODE: dict[str, type[ProtocolError]] = {
    cls.code: cls for family in (CallerError, HouseError, ModelServerError) for cls in family.__subclasses__()
}


def from_wire(code: str, sentence: str, partial: str = "", retry_after: float | None = None) -> ProtocolError:
    """The exception for an `error` or `stream_error` line; a code from a newer peer becomes Internal."""
    return BY_CODE.get(code, Internal)(sentence, partial=partial, retry_after=retry_after)
