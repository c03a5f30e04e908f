"""Our own client of the gateway's streams, against the gateway and against servers that do what no gateway should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
from gatewaying import gateway
from lookalikes.raw_http import RawServer, Reply, Request
from proxying import Proxy
from scripted import ScriptedBackend
from serving import until

from protocol.errors import (
    BackendDown,
    BadRequest,
    Busy,
    ConnectionLost,
    Forbidden,
    Internal,
    NotFound,
    ProtocolError,
    Refused,
    Unavailable,
    WrongReply,
)
from protocol.events import Event
from supervisor import http
from supervisor.gateway import follow
from supervisor.sse import EventClient, Lost, Patience

WORDS = ["one ", "two ", "three ", "four ", "five "]
CHAT = "/api/chat/apollo/stream"
ASK = {"message": "count"}
HASTY = Patience(tries=4, within=5.0, first=0.001, longest=0.01)


def tokens(events: list[Event]) -> list[str]:
    return [event.data.split('"token":"')[2].partition('"')[0] for event in events if event.name == "token"]


async def all_of(stream: AsyncGenerator[Event]) -> list[Event]:
    async with aclosing(stream) as events:
        return [event async for event in events]


def client(base: str, **how: Any) -> EventClient:
    return EventClient(base, **{"patience": HASTY, **how})


# -- a gateway ------------------------------------------------------------------------------------------------------------


async def test_an_answer_comes_event_by_event(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("Hel", "lo")) as served:
        ours = client(served.url)
        with anyio.fail_after(5):
            events = await all_of(ours.post(CHAT, ASK))
    assert [event.name for event in events] == ["token", "token", "complete", "done"]
    assert tokens(events) == ["Hel", "lo"]


async def test_a_connection_cut_at_every_token_loses_and_doubles_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "RETRY", b"retry: 1\n")
    backend, told = ScriptedBackend(*WORDS), list[Lost]()
    async with gateway(tmp_path, apollo=backend) as served, Proxy(served.port) as proxy:
        ours = client(proxy.url, tell=told.append)
        proxy.cut_behind(*(f'"token":"{word}"'.encode() for word in WORDS))
        with anyio.fail_after(10):
            events = await all_of(ours.post(CHAT, ASK))
    assert tokens(events) == WORDS
    assert [event.name for event in events[-2:]] == ["complete", "done"]
    assert len(backend.prompts) == 1
    assert [lost.tries for lost in told] == [1] * len(told) != []


async def test_a_question_that_was_cut_off_before_its_first_event_is_asked_once(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    backend = ScriptedBackend(go_on, *WORDS)
    async with gateway(tmp_path, apollo=backend) as served, Proxy(served.port) as proxy:
        ours = client(proxy.url)

        async def cut() -> None:
            await until(lambda: backend.under_way)
            proxy.cut()
            await until(lambda: len(proxy.requests) == 2)
            go_on.set()

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(cut)
                events = await all_of(ours.post(CHAT, ASK))
    assert tokens(events) == WORDS
    assert len(backend.prompts) == 1


@pytest.mark.parametrize("after", [0, 1], ids=["before the first token", "in the middle"])
async def test_whoever_leaves_withdraws_the_question(tmp_path: Path, after: int) -> None:
    backend = ScriptedBackend(*WORDS[:after], asyncio.Event())
    async with gateway(tmp_path, apollo=backend) as served:
        ours = client(served.url)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(all_of, ours.post(CHAT, ASK))
                await until(lambda: backend.under_way)
                await until(lambda: served.house.streams.readers)
                group.cancel_scope.cancel()
            await until(lambda: backend.cut_short == 1)
            assert served.house.streams.readers == 0


async def test_with_resume_the_answer_goes_on_without_its_reader(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with gateway(tmp_path, apollo=ScriptedBackend("one ", go_on, "two ")) as served:
        ours = client(served.url)
        with anyio.fail_after(5):
            async with aclosing(ours.post(CHAT, ASK | {"resume": True})) as events:
                first = await anext(events)
            go_on.set()
            rest = await all_of(ours.get(CHAT, last_id=first.id))
    assert tokens([first, *rest]) == ["one ", "two "]


async def test_behind_the_last_event_is_the_end(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=ScriptedBackend("one ")) as served:
        ours = client(served.url)
        with anyio.fail_after(5):
            [*_, last] = await all_of(ours.post(CHAT, ASK))
            assert await all_of(ours.get(CHAT, last_id=last.id)) == []


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/api/chat/apolo/stream", ASK, NotFound),
        (CHAT, {}, BadRequest),
        (CHAT, ASK, BackendDown),
        ("/nowhere", ASK, NotFound),
    ],
)
async def test_a_refusal_is_raised_and_not_repeated(
    tmp_path: Path, path: str, body: dict[str, str], error: type[ProtocolError]
) -> None:
    backend = ScriptedBackend(BackendDown("the model server is not running"))
    async with gateway(tmp_path, apollo=backend) as served, Proxy(served.port) as proxy:
        ours = client(proxy.url)
        with anyio.fail_after(5), pytest.raises(error):
            await all_of(ours.post(path, body))
        assert len(proxy.requests) == 1


# -- servers that do as a test says -------------------------------------------------------------------------------------------

Answer = Callable[[Request, Reply], Awaitable[None]]


def says(*blocks: str, headers: dict[str, str] | None = None, ends: str = "end", status: int = 200) -> Answer:
    """An answer of these blocks, which ends in one of the ways of a reply, or stays."""

    async def answer(request: Request, reply: Reply) -> None:
        reply.start(status, "text/event-stream", headers)
        for block in blocks:
            await reply.chunk(block.encode())
        if ends == "stay":
            await asyncio.Event().wait()
        getattr(reply, ends)()

    return answer


def in_turn(*answers: Answer) -> Answer:
    """One answer for each request; the last one for all others."""
    left = list(answers)

    async def answer(request: Request, reply: Reply) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(request, reply)

    return answer


def status(number: int, body: bytes = b"", **headers: str) -> Answer:
    async def answer(request: Request, reply: Reply) -> None:
        reply.whole(number, body, "application/problem+json", {k.replace("_", "-"): v for k, v in headers.items()})

    return answer


async def test_a_get_goes_on_where_it_was_and_ends_with_204() -> None:
    answers = in_turn(
        says("id: e-0\ndata: a\n\n", "id: e-1\nda"),
        says("id: e-1\ndata: b\n\n", "id: e-2\n\n"),
        status(204),
    )
    async with RawServer(answers) as server:
        ours = client(server.url)
        with anyio.fail_after(5):
            events = await all_of(ours.get("/api/events"))
    assert [event.data for event in events] == ["a", "b"]
    assert [request.path for request in server.requests] == ["/api/events"] * 3
    assert [request.headers.get("last-event-id") for request in server.requests] == [None, "e-0", "e-2"]


async def test_a_post_goes_on_by_its_stream() -> None:
    answers = in_turn(
        says("id: e-0\ndata: a\n\n", headers={"X-Stream-Id": "s 1"}, ends="reset"), says("event: done\ndata:\n\n")
    )
    async with RawServer(answers) as server:
        ours = client(server.url, key="ck_secret")
        with anyio.fail_after(5):
            events = await all_of(ours.post(CHAT, ASK))
    first, second = server.requests
    assert [event.name for event in events] == ["message", "done"]
    assert (first.method, first.path, first.body) == ("POST", CHAT, ASK)
    assert (second.method, second.path, second.raw) == ("GET", "/api/stream/events/s%201", b"")
    assert second.headers["last-event-id"] == "e-0"
    assert [request.headers["authorization"] for request in server.requests] == ["Bearer ck_secret"] * 2


async def test_a_reset_is_handed_on() -> None:
    reset = 'event: stream_reset\ndata: {"lost": 5}\n\n'
    async with RawServer(says(reset, "event: done\ndata:\n\n")) as server:
        ours = client(server.url)
        with anyio.fail_after(5):
            assert [event.name for event in await all_of(ours.get("/"))] == ["stream_reset", "done"]


@pytest.mark.parametrize("method", ["post", "get"])
async def test_what_cannot_be_gone_on_with_is_not_begun_again(method: str) -> None:
    async with RawServer(says("data: a\n\n", ends="reset")) as server:
        ours = client(server.url)
        asked = ours.post("/", ASK) if method == "post" else ours.get("/")
        with anyio.fail_after(5), pytest.raises(ConnectionLost, match="cannot be gone on with"):
            await all_of(asked)
        assert len(server.requests) == 1


async def test_patience_has_an_end() -> None:
    told: list[Lost] = []
    async with RawServer(says(ends="reset")) as server:
        ours = client(server.url, tell=told.append)
        with anyio.fail_after(5), pytest.raises(ConnectionLost, match="given up after 4 more tries"):
            await all_of(ours.get("/"))
    assert [lost.tries for lost in told] == [1, 2, 3, 4]
    assert len(server.requests) == 5


async def test_patience_is_no_longer_than_it_says() -> None:
    async with RawServer(status(204)) as server, Proxy(server.port) as proxy:
        proxy.refuses = True
        ours = client(proxy.url, patience=Patience(tries=10**9, within=0.05, first=0.01, longest=0.01))
        with anyio.fail_after(5), pytest.raises(ConnectionLost, match="given up"):
            await all_of(ours.get("/"))


async def test_an_event_renews_the_patience() -> None:
    answers = [says(f"id: e-{at}\ndata: {at}\n\n", ends="reset") for at in range(20)]
    async with RawServer(in_turn(*answers, status(204))) as server:
        ours = client(server.url)
        with anyio.fail_after(5):
            events = await all_of(ours.get("/"))
    assert [event.data for event in events] == [str(at) for at in range(20)]


async def test_where_nobody_listens_it_says_so_at_once() -> None:
    async with RawServer(status(204)) as server:
        pass
    with anyio.fail_after(5), pytest.raises(Refused, match="chorus up"):
        await all_of(client(server.url).get("/"))


async def test_a_gateway_that_is_not_back_yet_is_waited_for() -> None:
    told: list[Lost] = []
    async with RawServer(says("id: e-0\ndata: a\n\n", ends="stay")) as server:

        def tell(lost: Lost) -> None:
            told.append(lost)
            if len(told) == 3:
                server.answer = status(204)
                group.start_soon(server.listen)

        async with anyio.create_task_group() as group:
            with anyio.fail_after(5):
                async with aclosing(client(server.url, tell=tell).get("/")) as events:
                    await anext(events)
                    await server.refuse()
                    assert [event async for event in events] == []
    assert "nobody answers" in told[1].why


@pytest.mark.parametrize("number", [429, 502, 503, 504])
async def test_a_stream_that_was_there_waits_for_what_passes(number: int) -> None:
    told: list[Lost] = []
    answers = in_turn(says("id: e-0\ndata: a\n\n"), status(number, Retry_After="1"), status(204))
    async with RawServer(answers) as server:
        ours = client(server.url, tell=told.append)
        with anyio.fail_after(5):
            assert len(await all_of(ours.get("/"))) == 1
    assert [int(lost.again_after) for lost in told] == [0, 1]


@pytest.mark.parametrize(
    ("number", "body", "error"),
    [
        (401, b'{"error": "no key", "code": "unauthorized"}', Forbidden),
        (404, b'{"error": "gone", "code": "not_found"}', NotFound),
        (422, b'{"error": "message: missing", "code": "bad_request"}', BadRequest),
        (429, b'{"error": "slowly", "code": "too_many_requests"}', Busy),
        (503, b'{"error": "not ready", "code": "unavailable"}', Unavailable),
        (503, b"<html>a proxy</html>", Unavailable),
        (418, b"", BadRequest),
        (500, b"", Internal),
        (301, b"", Internal),
        (200, b"{}", WrongReply),
    ],
)
async def test_a_status_is_the_nearest_error(number: int, body: bytes, error: type[ProtocolError]) -> None:
    async with RawServer(status(number, body, Retry_After="7")) as server:
        ours = client(server.url)
        with anyio.fail_after(5), pytest.raises(error) as raised:
            await all_of(ours.get("/"))
    assert raised.value.retry_after in (7.0, None)
    assert len(server.requests) == 1


async def test_what_speaks_no_http_is_no_gateway() -> None:
    async def answer(request: Request, reply: Reply) -> None:
        await reply.raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

    async with RawServer(answer) as server:
        ours = client(server.url)
        with anyio.fail_after(5), pytest.raises(WrongReply):
            await all_of(ours.get("/"))
    with pytest.raises(BadRequest, match="is no address"):
        await all_of(client("localhost:8003").get("/"))


async def test_silence_is_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SILENCE", 0.05)
    told: list[Lost] = []
    answers = in_turn(says("id: e-0\ndata: a\n\n", ends="stay"), status(204))
    async with RawServer(answers) as server:
        ours = client(server.url, tell=told.append)
        with anyio.fail_after(5):
            await all_of(ours.get("/"))
    assert len(told) == 1


async def test_leaving_closes_the_connection_at_once() -> None:
    async with RawServer(says("data: a\n\n", ends="stay")) as server:
        ours = client(server.url)
        with anyio.fail_after(5):
            async with aclosing(ours.get("/")) as events:
                await anext(events)
            await server.requests[0].gone.wait()


# -- patience -----------------------------------------------------------------------------------------------------------------


def test_delays_double_up_to_the_longest() -> None:
    patience = Patience(first=0.5, longest=10.0)
    assert [patience.delay(lost, 0.0, 1.0) for lost in range(1, 8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert patience.delay(10_000, 0.0, 1.0) == 10.0


def test_chance_picks_the_whole_delay_on_top_of_what_the_gateway_asks_for() -> None:
    patience = Patience(first=0.5, longest=10.0)
    assert [patience.delay(1, 3.0, chance) for chance in (0.0, 0.5, 1.0)] == [3.0, 3.25, 3.5]
    assert patience.delay(1, 3600.0, 0.0) == 3600.0
