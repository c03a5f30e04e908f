"""EventSource in Chromium: as every page has it, with nothing of ours on its side."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from browsing import chromium
from event_vectors import VECTORS
from fronting import NODE, WITHIN, Front, program
from lookalikes.ollama import Script
from lookalikes.raw_http import RawServer, Reply, Request
from playwright.async_api import Browser, Page
from proxying import Proxy

from protocol.events import Event

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORDS = ("one ", "zwei ", "trois ", "четыре ", "五 ")
STEPPED = Script(tokens=WORDS, stepped=True)
CHAT = "/api/chat/athena-ai/stream"

LISTEN = """url => {
    window.told = [];
    window.source = new EventSource(url);
    for (const name of ["token", "complete", "done", "stream_reset", "message"]) {
        source.addEventListener(name, event => told.push([event.type, event.data, event.lastEventId]));
    }
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncGenerator[Browser]:
    async with chromium() as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncGenerator[Page]:
    context = await browser.new_context()
    context.set_default_timeout(WITHIN * 1000)
    yield await context.new_page()
    await context.close()


async def tokens(page: Page) -> list[str]:
    told: list[list[str]] = await page.evaluate("told")
    return [json.loads(data)["content"] for name, data, _ in told if name == "token"]


async def follows(page: Page, front: Front, *words: str) -> None:
    """Lets every token go when the page has the one before."""
    for word in words:
        front.server.step()
        await page.wait_for_function("word => told.some(([_, data]) => data.includes(word))", arg=word)


async def test_a_page_goes_on_where_it_was_cut_off_and_ends_at_the_end(front: Front, page: Page) -> None:
    front.server.use(STEPPED)
    asked = len(front.server.asked)
    async with Proxy(front.port) as proxy:
        proxy.cut_behind(b'"token":"zwei "', b'"token":"trois "')
        await page.goto(f"{proxy.url}/api/nothing")
        for rounds in (1, 2):  # the second takes longer than a reconnect of the first would
            await page.evaluate(LISTEN, f"{CHAT}?message=count")
            await follows(page, front, *WORDS)
            await page.wait_for_function("source.readyState === EventSource.CLOSED")
            assert tuple(await tokens(page)) == WORDS
            assert [name for name, _, _ in await page.evaluate("told")][-2:] == ["complete", "done"]
            assert len(front.server.asked) == asked + rounds
        asks = [request for request in proxy.requests if CHAT in request]
        assert len(asks) == 4 + 2  # with two cuts, and without


async def test_a_page_that_is_loaded_anew_goes_on_where_it_was(front: Front, page: Page) -> None:
    front.server.use(STEPPED)
    asked = len(front.server.asked)
    await page.goto(f"{front.url}/api/nothing")
    await page.evaluate(LISTEN, f"{CHAT}?message=count")
    await follows(page, front, *WORDS[:2])
    before, cursor = await tokens(page), (await page.evaluate("told.at(-1)"))[2]
    await page.reload()
    front.server.step()  # while nobody looks
    await page.evaluate(LISTEN, f"{CHAT}?last_event_id={cursor}")
    await follows(page, front, *WORDS[3:])
    await page.wait_for_function("source.readyState === EventSource.CLOSED")
    assert "".join([*before, *await tokens(page)]) == "".join(WORDS)  # what came while nobody looked may be one token
    assert len(front.server.asked) == asked + 1


# -- witnesses of the standard --------------------------------------------------------------------------------------------

NAMES = sorted({event.name for _, events in VECTORS.values() for event in events})
READ = """([origin, count, names]) => Promise.all([...Array(count).keys()].map(at => new Promise(resolve => {
    const told = [], source = new EventSource(`${origin}/${at}`);
    for (const name of names) {
        source.addEventListener(name, event => told.push([event.type, event.data, event.lastEventId]));
    }
    source.onerror = () => { source.close(); resolve(told); };
})))"""


async def tell(request: Request, reply: Reply) -> None:
    """One vector."""
    at = request.path.removeprefix("/")
    if not at.isdigit():
        reply.whole(200, b"<title>a page</title>", "text/html")
        return
    reply.start(200, "text/event-stream")
    data, _ = list(VECTORS.values())[int(at)]
    if data:
        await reply.chunk(data)
    reply.end()


EXPECTED = {name: events for name, (_, events) in VECTORS.items()}


def without(told: dict[str, list[Event]], name: str) -> dict[str, list[Event]]:
    return {one: events for one, events in told.items() if one != name}


def named(told: list[list[tuple[str, str, str]]]) -> dict[str, list[Event]]:
    return {name: [Event(*one) for one in events] for name, events in zip(VECTORS, told, strict=True)}


async def test_chromium_reads_as_we_do(page: Page) -> None:
    async with RawServer(tell) as server:
        await page.goto(server.url)
        told = await page.evaluate(READ, [server.url, len(VECTORS), NAMES])
    assert named(told) == EXPECTED


async def test_node_reads_as_we_do() -> None:
    async with RawServer(tell) as server:
        asked = json.dumps([server.url, len(VECTORS), NAMES])
        code = f"({READ})({asked}).then(told => console.log(JSON.stringify(told)))"
        async with program(NODE, "--experimental-eventsource", "-e", code) as node:
            told = json.loads(await node.ends())
    assert without(named(told), "empty name") == without(EXPECTED, "empty name")  # it takes such a name for none said
