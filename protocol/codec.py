"""One line into one message and back. The place where bytes become values and foreign errors become ours."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from protocol import messages
from protocol.errors import BadJson, BadRequest, ProtocolError, UnknownType, WrongReply, from_wire
from protocol.messages import AnyReply, AnyRequest, Chat, Context, Error, Reply, RequestId, StreamError

T = TypeVar("T")

_REQUESTS: dict[str, type[AnyRequest]] = {
    cls.__struct_config__.tag: cls  # type: ignore[misc]
    for cls in (
        Chat,
        messages.Ping,
        messages.Health,
        messages.Info,
        messages.History,
        messages.Reset,
        messages.Embed,
        messages.Cancel,
    )
}
REQUEST_TYPES = tuple(_REQUESTS)


_ABSENT = msgspec.Raw()  # `Raw | None` would be read as None alone, and every content refused


class _Head(msgspec.Struct):
    """What is read of a request before its type is known; unchecked, so that an error finds its id."""

    type: Any = msgspec.UNSET
    request_id: Any = None
    content: msgspec.Raw = _ABSENT
    message: msgspec.Raw = _ABSENT
    close: Any = False


class BadLine(ProtocolError):
    """A request that could not be decoded: the reason, and its request_id and its `close` where they could be read."""

    def __init__(self, reason: ProtocolError, request_id: RequestId | None = None, *, close: bool = False) -> None:
        super().__init__(reason.sentence)
        self.reason = reason
        self.request_id = request_id
        self.close = close


_decode_head = msgspec.json.Decoder(_Head).decode
_decoders: dict[str, Callable[[bytes], AnyRequest]] = {
    name: msgspec.json.Decoder(cls).decode for name, cls in _REQUESTS.items()
}
_decode_reply: Callable[[bytes], AnyReply] = msgspec.json.Decoder(AnyReply).decode
_encoder = msgspec.json.Encoder()

_MALFORMED = re.compile(r"JSON is malformed: (?P<what>.*) \(byte (?P<at>\d+)\)")
_AT_PATH = re.compile(r"(?P<what>.*) - at `(?P<path>[^`]*)`$")
# msgspec calls a line truncated that ends within six bytes after a lone high surrogate.
_LONE_AT_END = re.compile(
    rb"(?<!\\)(?:\\\\)*(?P<lone>\\u[dD][89abAB][0-9a-fA-F]{2})(?!\Z|\\\Z|\\u).{0,5}\Z",
    re.DOTALL,
)
LONGEST_REASON = 200  # of what a sentence repeats from the peer


def encode(message: msgspec.Struct) -> bytes:
    """One message as one line, with its LF."""
    return _encoder.encode(message) + b"\n"


def parse_json(decode: Callable[[bytes], T], line: bytes) -> T:
    """Decodes one line with a msgspec decoder. Raises BadJson with the byte, BadRequest with the field."""
    try:
        if not line.isascii():
            line.decode()
        return decode(line)
    except UnicodeDecodeError as error:
        raise BadJson(f"not UTF-8 at byte {error.start}: send UTF-8, one JSON object per line") from None
    except RecursionError:
        raise BadJson("JSON nested too deeply: send a flatter object") from None
    except msgspec.ValidationError as error:
        raise BadRequest(explain(error)) from None
    except msgspec.DecodeError as error:
        if found := _MALFORMED.match(str(error)):
            what, at = found["what"], int(found["at"])
            if what == "trailing characters":  # here alone msgspec counts the byte itself
                at -= 1
        elif lone := _LONE_AT_END.search(line, max(0, len(line) - 16)):
            what, at = "half of a surrogate pair", lone.start("lone")
        else:
            what, at = "it ends too early", len(line)
        raise BadJson(f"not JSON at byte {at} ({what}): one JSON object per line, or plain text") from None


def explain(error: msgspec.ValidationError) -> str:
    """The sentence for a value of the wrong shape: `options.temperature: expected ...`."""
    found = _AT_PATH.match(str(error))
    what, path = (found["what"], found["path"]) if found else (str(error), "$")
    what = what.replace("`", "")
    if len(what) > LONGEST_REASON:  # a value that was repeated whole
        what = what[:LONGEST_REASON] + "…"
    where = path.removeprefix("$").lstrip(".")
    return f"{where}: {what[0].lower()}{what[1:]}" if where else what


def decode_request(line: bytes) -> AnyRequest:
    """One request. `type` may be missing where there is content or message: then it is a chat.

    Raises BadLine with the reason: BadJson, BadRequest or UnknownType.
    """
    try:
        head = parse_json(_decode_head, line)
    except ProtocolError as error:
        raise BadLine(error) from None

    try:
        kind = _kind(head)
        decode = _decoders.get(kind)
        if decode is None:
            raise UnknownType(_unknown_type(kind))
        # A missing type is what the decoder of a tagged Struct takes for its own.
        request = parse_json(decode, line)
        if isinstance(request, Chat):
            read_context(request.context)
            if request.content is None and request.message is None:
                raise BadRequest("content: missing; say what to answer")
        if isinstance(request, messages.Cancel) and request.target is None:
            raise BadRequest("target: missing; name the request_id to cancel")
    except ProtocolError as error:
        request_id = head.request_id if type(head.request_id) in (str, int) else None
        raise BadLine(error, request_id, close=head.close is True) from None
    return request


def _kind(head: _Head) -> str:
    if head.type is msgspec.UNSET:
        if head.content is _ABSENT and head.message is _ABSENT:
            raise BadRequest('a request needs "type", or "content" with the text to answer')
        return "chat"
    if not isinstance(head.type, str):
        raise BadRequest(f"type: expected a string, one of {', '.join(REQUEST_TYPES)}")
    return head.type


def is_typed(line: bytes) -> bool:
    """Whether a line that decode_request took says its type."""
    return _decode_head(line).type is not msgspec.UNSET


def read_context(context: dict[str, Any] | None) -> Context:
    """The known keys of a pipeline context; raises BadRequest with the path of a wrong one."""
    try:
        return msgspec.convert(context or {}, Context)
    except msgspec.ValidationError as error:
        raise BadRequest("context." + explain(error)) from None


def decode_reply(line: bytes) -> AnyReply:
    """One answer, as a client reads it; raises WrongReply when it is none."""
    try:
        return parse_json(_decode_reply, line)
    except ProtocolError as error:
        raise WrongReply(f"the answer cannot be read: {error.sentence}") from None


def error_reply(error: ProtocolError, request_id: RequestId | None, ai_id: str | None) -> Error:
    """The `error` line for a request that was refused before its stream started."""
    return Error(
        request_id=request_id,
        ai_id=ai_id,
        code=error.code,
        error=error.sentence,
        partial=error.partial,
        retry_after=error.retry_after,
    )


def stream_error(error: ProtocolError, request_id: RequestId | None, ai_id: str | None) -> StreamError:
    """The `stream_error` line that ends a stream that had started."""
    return StreamError(
        request_id=request_id,
        ai_id=ai_id,
        code=error.code,
        error=error.sentence,
        partial=error.partial,
        retry_after=error.retry_after,
    )


def raise_for(reply: Reply) -> None:
    """Raises the exception that an `error` or `stream_error` reply stands for; other replies pass."""
    if isinstance(reply, Error | StreamError):
        raise from_wire(reply.code, reply.error, reply.partial or "", reply.retry_after)


def _unknown_type(kind: str) -> str:
    kind = kind[:40]  # matching is slower than linear, and the peer chose the length
    close = difflib.get_close_matches(kind, REQUEST_TYPES, n=1)
    hint = f' did you mean "{close[0]}"?' if close else ""
    return f'unknown type "{kind}":{hint} known are {", ".join(REQUEST_TYPES)}'
