"""The seam to a model server: every way in which HTTP can fail becomes one of protocol.errors here, with its remedy."""

from __future__ import annotations

import errno
import re

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError
from msgspec import Struct

from protocol.errors import (
    BackendDown,
    BadRequest,
    Busy,
    ContextOverflow,
    ModelError,
    ModelMissing,
    ProtocolError,
)

# What an HTTP exchange raises. HttpProcessingError is no ClientError, and comes out of garbage between two
# chunks; ValueError is a host that cannot be encoded, or a body that cannot be decoded.
FOREIGN = (aiohttp.ClientError, HttpProcessingError, OSError, TimeoutError, ValueError)
# The other side closed a connection that there was.
CLOSED = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError)
# What decoding a line or a body raises.
UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)

RETRY_AFTER = 1.0  # where a busy server does not say
LONGEST_RETRY_AFTER = 3600.0
LONGEST_QUOTE = 500  # characters of a foreign error in a sentence of ours

_OVERFLOW = re.compile(r"context|exceed|input length", re.IGNORECASE)
_NO_MODEL = re.compile(r"model.*(not found|does not exist)", re.IGNORECASE | re.DOTALL)


class Server(Struct, frozen=True):
    """Where the model server is, and what to tell people who want it to run, or to have a model."""

    url: str
    start: str = "start it with `ollama serve`"
    obtain: str = "run `ollama pull {model}`"

    def missing(self, model: str) -> ModelMissing:
        return ModelMissing(f"{self.url} does not have the model {model}: {self.obtain.format(model=model)}")


class Refusal(Struct, frozen=True):
    """An answer that is not 200."""

    status: int
    text: str
    retry_after: float | None = None

    @property
    def is_missing_model(self) -> bool:
        return self.status == 404 and bool(_NO_MODEL.search(self.text))


class StatusError(Exception):
    """The model server answered with something else than 200; whoever asked knows what that means."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.status)
        self.refusal = refusal


def unreachable(error: BaseException, server: Server) -> BackendDown:
    """No answer began: what was raised, as a sentence with its remedy."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return BackendDown(f"the host of {server.url} is not known: correct backend.url")
    if isinstance(error, aiohttp.ClientConnectorError):
        cause: BaseException = error.os_error
        if getattr(cause, "errno", None) == errno.ECONNREFUSED or "refused" in str(cause).lower():
            return BackendDown(f"nothing listens at {server.url}: {server.start}, or correct backend.url")
        return BackendDown(
            f"{server.url} cannot be reached ({brief(str(cause))}): correct backend.url, or {server.start}"
        )
    if isinstance(error, aiohttp.ServerTimeoutError | TimeoutError):
        return BackendDown(
            f"{server.url} does not accept connections: see whether that machine is up, or correct backend.url"
        )
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError | UnicodeError):
        return BackendDown(f"{server.url} is not the address of a model server: correct backend.url")
    if isinstance(error, (*CLOSED, aiohttp.ClientPayloadError)):
        return BackendDown(
            f"the model server at {server.url} closed the connection before it answered: see its log, then ask again"
        )
    what = brief(str(error)) or type(error).__name__
    return BackendDown(f"what answers at {server.url} is no model server ({what}): correct backend.url")


def broken(error: BaseException, server: Server) -> ModelError:
    """An answer had begun, and its connection failed."""
    what = brief(str(error)) or type(error).__name__
    return ModelError(
        f"the connection to {server.url} broke in the middle of the answer ({what}): see its log, then ask again"
    )


def refused(refusal: Refusal, server: Server, model: str) -> ProtocolError:
    """What an answer that is not 200 means."""
    status, said = refusal.status, brief(refusal.text)
    if status in (429, 503):
        retry_after = refusal.retry_after if refusal.retry_after is not None else RETRY_AFTER
        return Busy(
            f"the model server is busy ({said or status}): try again in {retry_after:g} s",
            retry_after=retry_after,
        )
    if status == 404:
        if refusal.is_missing_model:
            return server.missing(model)
        return BackendDown(f"what answers at {server.url} does not know this request (404 {said}): correct backend.url")
    if status == 401:
        return BackendDown(f"{server.url} wants another key (401 {said}): name it with backend.api_key_file")
    if status == 403 and not said:
        return BackendDown(
            f"{server.url} refuses this Host or Origin (403): use localhost or its address in backend.url, "
            "or allow it with OLLAMA_ORIGINS and OLLAMA_HOST at the model server"
        )
    if status == 400 and _OVERFLOW.search(said):
        return ContextOverflow(
            f"the prompt does not fit the model's context ({said}): ask with less, or reset the session"
        )
    if 400 <= status < 500:
        return BadRequest(f"the model server refuses this request ({status} {said}): change the request")
    if status in (502, 504) or status < 400:
        return BackendDown(f"{server.url} answers {status} {said}: point backend.url at the model server itself")
    return ModelError(f"the model server failed ({status} {said}): see its log; the model may not fit in memory")


def retry_after(header: str | None) -> float | None:
    """The seconds of a Retry-After header; a date counts as not said."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return min(seconds, LONGEST_RETRY_AFTER) if seconds >= 0 else None


class _Error(Struct):
    error: object = None
    message: object = None
    detail: object = None


_decode_error = msgspec.json.Decoder(_Error).decode


def said_by(body: bytes) -> str:
    """The sentence in an error body: a string, an object with a message, or such an object inside a string."""
    text = body.decode(errors="replace").strip()
    for _ in range(3):  # llama-server's JSON comes as a string inside Ollama's
        try:
            found = _decode_error(text.encode())
        except UNREADABLE:
            break
        inner = found.error or found.message or found.detail
        if not inner:
            break
        text = spoken(inner)
    return text


def spoken(error: object) -> str:
    """The sentence in the value of an `error` field."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("error") or msgspec.json.encode(error).decode()
    return error.strip() if isinstance(error, str) else str(error)


def unwrapped(error: object) -> str:
    """The same, for a string that may hold another server's JSON."""
    text = spoken(error)
    return said_by(text.encode()) if text.startswith("{") else text


def brief(text: str) -> str:
    """Not more of it than a sentence bears, in one line."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_QUOTE else text[:LONGEST_QUOTE] + "…"
