"""What goes wrong, as HTTP says it: a status and `application/problem+json` (RFC 9457), with a plain sentence besides.

A protocol that has errors of its own gives another form for the routes below its prefix.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware
from msgspec import Struct

from protocol import errors
from protocol.errors import PeerError, ProtocolError
from protocol.shape import Mistake

logger = logging.getLogger("chorus.gateway")

CONTENT_TYPE = "application/problem+json"
SAID = 3  # mistakes that the sentence has: the rest stands in `errors`
RETRY_AFTER = 1.0  # seconds, where nobody knows better


class Problem(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An error as it is sent. `error` is one sentence: what happened, and what to do; `code` is the wire's.

    `errors` are all mistakes of a document that was refused.
    """

    title: str
    status: int
    detail: str
    error: str
    code: str
    errors: list[Mistake] | None = None
    type: str = msgspec.field(default_factory=lambda: "about:blank")
    partial: str | None = None
    trace_id: str | None = None


class BadHttp(errors.CallerError):
    """It is not how one asks over HTTP."""

    code = "bad_request"


class TooSlow(errors.CallerError):
    """The body did not arrive within its time."""

    code = "too_slow"


class Encoded(errors.CallerError):
    """The body is compressed."""

    code = "unsupported_encoding"


class TooLarge(errors.CallerError):
    """The body is larger than this gateway takes."""

    code = "too_large"


class TooMany(errors.HouseError):
    """Our own limit for one caller."""

    code = "too_many_requests"


class Unauthorized(errors.CallerError):
    """No key, or none that is known."""

    code = "unauthorized"


class Mistaken(errors.BadRequest):
    """A document with mistakes, all of which are told."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("; ".join(one.sentence for one in mistakes[:SAID]))
        self.mistakes = mistakes


class Conflict(errors.CallerError):
    """It cannot be done as things stand."""

    code = "conflict"


class Misdirected(errors.CallerError):
    """The Host is nobody's name here: somebody has another name point at us."""

    code = "misdirected"


# The nearest class of an error's ancestry decides.
STATUSES: dict[type[ProtocolError], int] = {
    errors.BadJson: 400,
    BadHttp: 400,
    Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    TooSlow: 408,
    Conflict: 409,
    TooLarge: 413,
    errors.LineTooLong: 413,
    Encoded: 415,
    Misdirected: 421,
    errors.CallerError: 422,
    TooMany: 429,
    errors.Internal: 500,
    errors.ModelServerError: 502,
    PeerError: 502,
    errors.HouseError: 503,
    errors.Refused: 503,
    errors.DeadlinePassed: 504,
    errors.Stalled: 504,
}
TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    421: "Misdirected Request",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
WAITING_HELPS = (429, 503)
LEFT = 499  # in the log alone, as nginx has it: nobody was there any more to be given a status


def status_of(error: ProtocolError) -> int:
    """The HTTP status of an error."""
    return next(STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES)


def code_of(error: ProtocolError) -> str:
    """Its code; what a client meets on its own side of a connection has none on the wire."""
    return error.code or "unavailable"


class Failure(Struct, frozen=True, kw_only=True):
    """What went wrong, before it has a form."""

    status: int
    code: str
    sentence: str
    partial: str = ""
    retry_after: float | None = None
    trace_id: str | None = None
    errors: list[Mistake] | None = None


Form = Callable[[Failure], web.Response]


def failure_of(error: ProtocolError, *, trace_id: str | None = None) -> Failure:
    return Failure(
        status=status_of(error),
        code=code_of(error),
        sentence=error.sentence,
        partial=error.partial,
        retry_after=error.retry_after,
        trace_id=trace_id,
        errors=error.mistakes if isinstance(error, Mistaken) else None,
    )


def as_problem(failure: Failure) -> web.Response:
    """The form of all routes that have no other."""
    problem = Problem(
        title=TITLES.get(failure.status, "Error"),
        status=failure.status,
        detail=failure.sentence,
        error=failure.sentence,
        code=failure.code,
        partial=failure.partial or None,
        trace_id=failure.trace_id,
        errors=failure.errors,
    )
    return web.Response(status=failure.status, body=msgspec.json.encode(problem), content_type=CONTENT_TYPE)


def response(failure: Failure, form: Form = as_problem) -> web.Response:
    """The whole answer for a failure, with the headers that every form has."""
    answer = form(failure)
    if failure.status in WAITING_HELPS:
        wait = failure.retry_after if failure.retry_after is not None else RETRY_AFTER
        answer.headers["Retry-After"] = str(max(1, math.ceil(wait)))
    if failure.status == 401:
        answer.headers["WWW-Authenticate"] = 'Bearer realm="chorus"'
    return answer


def _of_aiohttp(error: web.HTTPException) -> Failure:
    """An answer of the library itself: no such route, a method that is not there, a body over the limit."""
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        sentence = f"the body is too large: {error.text}; send less, or raise gateway.max_body_bytes"
        return failure_of(TooLarge(sentence))
    if error.status == 404:
        return failure_of(errors.NotFound("there is nothing here: GET /openapi.json lists the routes"))
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        sentence = f"{error.method} is not among what this route takes: {allowed}"
        return Failure(status=405, code="method_not_allowed", sentence=sentence)
    return Failure(status=error.status, code=f"http_{error.status}", sentence=(error.reason or "error").lower())


def problems(forms: Mapping[str, Form]) -> Middleware:
    """The middleware that has every failure answered, below each prefix in its form.

    The fence: our own mistakes are logged with the id that the caller is told.
    """

    @web.middleware
    async def problems(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        form = next((form for prefix, form in forms.items() if request.path.startswith(prefix)), as_problem)
        try:
            return await handler(request)
        except ProtocolError as error:
            return response(failure_of(error), form)
        except web.HTTPException as error:
            if error.status < 400:
                return error
            answer = response(_of_aiohttp(error), form)
            if "Allow" in error.headers:
                answer.headers["Allow"] = error.headers["Allow"]
            return answer
        except ConnectionError:
            # The caller is gone, or is to be let go without a word. Raised on, the library would call it an error of ours.
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=LEFT)
        except Exception:
            trace_id = secrets.token_hex(6)
            logger.exception("%s %s failed [%s]", request.method, request.rel_url.raw_path[:200], trace_id)
            sentence = f"the gateway failed: chorus logs gateway has the trace {trace_id}"
            return response(failure_of(errors.Internal(sentence), trace_id=trace_id), form)

    return problems
