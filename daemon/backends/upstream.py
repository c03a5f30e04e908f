"""The HTTP session with one model server, and the tasks that belong to it.

Requests wait for their status line in tasks of this object, not in the generators that hand out answers: no
status line comes before the first token, and meanwhile people want to be told what they wait for. An async
generator may be closed from anywhere at any `yield`, so it must own neither a task group nor a cancel scope.
"""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace

import aiohttp
import anyio
import msgspec
from anyio.abc import TaskGroup

from daemon.backends import http
from daemon.backends.call import Call
from daemon.backends.http import FOREIGN, Refusal, Server, StatusError
from daemon.backends.rhythm import Rhythm
from protocol.errors import BadRequest, Draining
from protocol.settings import Limits

READ_BUFFER = 1_048_576  # with less, aiohttp stops and starts the socket between small chunks
LARGEST_BODY = 64 * 1_048_576  # of an answer that is read whole: vectors of a long list of texts
LARGEST_REFUSAL = 65_536
REFUSAL_WITHIN = 5.0  # seconds for the body of an error whose status line is here
LARGE_REQUEST = 1_048_576  # aiohttp warns of larger ones as bytes, and wants a file


class Upstream:
    """The way to one model server. Works inside `async with upstream.open()`, which belongs to a backend's run()."""

    def __init__(self, server: Server, limits: Limits, rhythm: Rhythm, api_key: str | None) -> None:
        self.server = server
        self.limits = limits
        self.rhythm = rhythm
        # Compression would make a proxy hold tokens back.
        self._headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._session: aiohttp.ClientSession | None = None
        self._tasks: TaskGroup | None = None
        self._calls: dict[Call, None] = {}  # all that are open
        self._unheard: dict[Call, None] = {}  # those before their first token, oldest first

    @property
    def is_open(self) -> bool:
        return self._tasks is not None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """Holds the session; at the end every request under way fails with Draining."""
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_note_reuse)
        async with anyio.create_task_group() as tasks:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # how many run at once is for the server, and the gate, to say
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=self.rhythm.connect, sock_connect=self.rhythm.connect, sock_read=None
                ),
                read_bufsize=READ_BUFFER,
                trace_configs=[trace],
                auto_decompress=False,
            )
            self._tasks = tasks
            try:
                yield
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()
                for call in list(self._calls):
                    call.fail(_ending())
                with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                    await self._session.close()

    # -- requests that are read whole ---------------------------------------------------------------------------------

    async def fetch(self, method: str, path: str, body: object = None) -> bytes:
        """The body of a 200; raises StatusError for another status, BackendDown where none comes."""
        response = await self._request(method, path, body)
        try:
            return await _read_whole(response, LARGEST_BODY)
        except FOREIGN as error:
            raise http.unreachable(error, self.server) from None
        finally:
            response.close()

    # -- requests that are streamed -----------------------------------------------------------------------------------

    def call(self, model: str, opening: Callable[[Call], Awaitable[aiohttp.ClientResponse]]) -> Call:
        """Begins a question. `opening` runs as a task here until the status line has come."""
        if not self.is_open:
            raise _ending()
        call = Call(model, self)
        self._calls[call] = None
        self._unheard[call] = None
        self.start(call.open, opening)
        return call

    async def post(self, path: str, body: object) -> aiohttp.ClientResponse:
        """An open answer of status 200, to be closed by the caller; raises as `fetch` does."""
        return await self._request("POST", path, body)

    def start(self, task: Callable[..., Coroutine[object, object, object]], *args: object) -> None:
        """Runs something that must outlive whoever asked for it."""
        if self._tasks is None:
            raise _ending()
        self._tasks.start_soon(task, *args)

    def ahead_of(self, call: Call) -> int:
        """How many earlier questions of this process still wait for their first token."""
        return next((place for place, other in enumerate(self._unheard) if other is call), 0)

    def heard(self, call: Call) -> None:
        """Its first token is here."""
        self._unheard.pop(call, None)

    def over(self, call: Call) -> None:
        self._unheard.pop(call, None)
        self._calls.pop(call, None)

    def tell_waiting(self) -> None:
        """Something new is known of the model server: whoever waits looks again at what they wait for."""
        for call in self._unheard:
            call.news.set()

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _request(self, method: str, path: str, body: object) -> aiohttp.ClientResponse:
        if self._session is None or self._session.closed:
            raise _ending()
        try:
            data = None if body is None else msgspec.json.encode(body)
        except UnicodeEncodeError as error:
            raise BadRequest(f"the text cannot be sent ({error.reason}): send valid Unicode") from None
        for last in (False, True):
            seen = SimpleNamespace(reused=False)
            try:
                response = await self._session.request(
                    method,
                    self.server.url + path,
                    data=io.BytesIO(data) if data is not None and len(data) > LARGE_REQUEST else data,
                    allow_redirects=False,
                    trace_request_ctx=seen,
                )
                break
            except FOREIGN as error:
                # A connection kept from an earlier answer may have been closed by the server at this very
                # moment: that says nothing about the server, so the question is asked once more.
                if seen.reused and not last and isinstance(error, http.CLOSED):
                    continue
                raise http.unreachable(error, self.server) from None
        if response.status == 200:
            return response
        raise StatusError(await _refusal(response))


def _ending() -> Draining:
    return Draining("this specialist is ending or has just begun: ask again in a moment", retry_after=1.0)


async def _note_reuse(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx.reused = True


async def _read_whole(response: aiohttp.ClientResponse, limit: int) -> bytes:
    body = bytearray()
    while data := await response.content.readany():
        body += data
        if len(body) > limit:
            raise ValueError(f"more than {limit} bytes")
    return bytes(body)


async def _refusal(response: aiohttp.ClientResponse) -> Refusal:
    """What a status other than 200 came with; a body that breaks or never ends is left out."""
    body = b""
    try:
        with anyio.move_on_after(REFUSAL_WITHIN):
            body = await _read_whole(response, LARGEST_REFUSAL)
    except FOREIGN:
        pass
    finally:
        response.close()
    text = http.said_by(body)
    return Refusal(response.status, text, http.retry_after(response.headers.get("Retry-After")))
