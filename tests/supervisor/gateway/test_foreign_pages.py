"""Pages of others in a real Chromium, on this very machine: whatever they try, nothing reaches a model.

Each attempt is seen to arrive: a browser that blocks one by itself would prove nothing about us.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from browsing import chromium
from gatewaying import ServedGateway, gateway
from playwright.async_api import Error, Page
from scripted import EchoBackend
from serving import until

CHAT = "/api/chat/apollo"
STREAM = f"{CHAT}/stream?message=steal"
EVIL = "evil.example"
REBOUND = "rebound.example"
# Names of the internet that lead here: whoever owns a name may have it do so.
NAMES = f"--host-resolver-rules=MAP {EVIL} 127.0.0.1, MAP {REBOUND} 127.0.0.1"

FETCHES = """async url => {
    const tried = [];
    for (const how of [
        {method: "POST", body: '{"message": "steal"}', mode: "no-cors"},
        {method: "POST", body: '{"message": "steal"}', mode: "no-cors", credentials: "include"},
        {method: "POST", body: '{"message": "steal"}', mode: "cors"},
        {method: "POST", body: '{"message": "steal"}', mode: "cors", headers: {"X-API-Key": "x"}},
        {method: "GET", mode: "no-cors"},
        {method: "GET", mode: "cors"},
        {method: "GET", mode: "no-cors", referrerPolicy: "no-referrer"},
    ]) {
        try {
            const response = await fetch(url, how);
            tried.push([response.type, response.status, await response.text()]);
        } catch (error) {
            tried.push(["error", 0, ""]);
        }
    }
    return tried;
}"""
LOADS = """async ([tag, attribute, url]) => {
    const element = document.createElement(tag);
    element[attribute] = url;
    const over = new Promise(resolve => {
        for (const event of ["load", "error"]) element.addEventListener(event, () => resolve(event));
        setTimeout(() => resolve("silence"), 2000);
    });
    document.body.append(element);
    return await over;
}"""
SOCKET = """async url => {
    const socket = new WebSocket(url);
    return await new Promise(resolve => {
        socket.onopen = () => resolve("open");
        socket.onclose = () => resolve("closed");
    });
}"""
SOURCE = """async url => {
    const source = new EventSource(url);
    return await new Promise(resolve => {
        source.onopen = () => resolve("open");
        source.onerror = () => { resolve(["connecting", "open", "closed"][source.readyState]); source.close(); };
    });
}"""
POSTS = """async ([url, type]) => {
    const form = document.createElement("form");
    Object.assign(form, {method: "post", action: url, enctype: type, target: "away"});
    const field = document.createElement("input");
    Object.assign(field, {name: '{"message": "steal", "x": "', value: '"}'});
    form.append(field);
    const frame = document.createElement("iframe");
    frame.name = "away";
    document.body.append(frame, form);  // its own empty page is loaded at once
    const over = new Promise(resolve => frame.addEventListener("load", resolve));
    form.submit();
    await over;
    form.remove();
    frame.remove();
}"""
# A sandboxed frame, whose Origin is null, tries the same and tells its parent.
SANDBOXED = """async url => {
    const frame = document.createElement("iframe");
    frame.sandbox = "allow-scripts allow-forms";
    frame.srcdoc = `<script>
        (async () => {
            let told = "error";
            try { told = (await fetch("${url}", {method: "POST", body: '{"message": "steal"}'})).type } catch {}
            parent.postMessage(told, "*");
        })();
    <\\/script>`;
    const over = new Promise(resolve => addEventListener("message", event => resolve(event.data), {once: true}));
    document.body.append(frame);
    return await over;
}"""


class Attack:
    """A foreign page that is open in a browser, and the gateway that it is after. `arrived` are the statuses it was given."""

    def __init__(self, page: Page, served: ServedGateway, backend: EchoBackend, log: pytest.LogCaptureFixture) -> None:
        self.page = page
        self.served = served
        self.backend = backend
        self._log = log

    def url(self, path: str, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.served.port}{path}"

    @property
    def arrived(self) -> list[int]:
        lines = [
            one.getMessage().split() for one in self._log.records if one.name == "chorus.gateway" and " ms " in one.msg
        ]
        return [int(words[2]) for words in lines]

    async def script(self, script: str, argument: Any) -> Any:
        return await self.page.evaluate(script, argument)


@asynccontextmanager
async def evil_server() -> AsyncGenerator[int]:
    """A web server of somebody else, with a page that allows itself everything."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>kittens</title><body></body>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def attack(
    folder: Path, log: pytest.LogCaptureFixture, host: str = EVIL, *, is_listed: bool = False, **settings: Any
) -> AsyncGenerator[Attack]:
    """A page of `host` is open, and nothing has asked yet. `is_listed` puts it among those that may."""
    log.set_level(logging.INFO, "chorus.gateway")
    backend = EchoBackend()
    with anyio.fail_after(60):
        async with chromium(NAMES) as browser, evil_server() as port:
            page = await (await browser.new_context()).new_page()
            await page.goto(f"http://{host}:{port}/")
            if is_listed:
                settings["allowed_origins"] = [f"http://{host}:{port}"]
            async with gateway(folder, settings, apollo=backend) as served:
                yield Attack(page, served, backend, log)


@pytest.mark.parametrize("host", [EVIL, "localhost"])  # another site, and another port of this one
async def test_another_page_cannot_ask(tmp_path: Path, caplog: pytest.LogCaptureFixture, host: str) -> None:
    async with attack(tmp_path, caplog, host) as it:
        for path in (CHAT, STREAM, "/api/session", "/nothing"):
            for kind, status, text in await it.script(FETCHES, it.url(path)):
                assert kind in ("error", "opaque")
                assert (status, text) == (0, "")
        assert len(it.arrived) >= 4 * 6
        assert set(it.arrived) == {403}
        assert it.backend.prompts == []


async def test_another_page_cannot_post_a_form(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with attack(tmp_path, caplog) as it:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            for path in (CHAT, f"{CHAT}/stream"):
                await it.script(POSTS, [it.url(path), kind])
        assert it.arrived == [403] * 6
        assert it.backend.prompts == []


@pytest.mark.parametrize("host", [EVIL, "localhost"])
async def test_another_page_cannot_load_an_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture, host: str) -> None:
    """With GET and no Origin, as an image or a script; this reached a model once, elsewhere."""
    loads = [
        ("img", "src"),
        ("script", "src"),
        ("iframe", "src"),
        ("audio", "src"),
        ("embed", "src"),
        ("object", "data"),
    ]
    async with attack(tmp_path, caplog, host) as it:
        for at, (tag, attribute) in enumerate(loads):
            await it.script(LOADS, [tag, attribute, it.url(STREAM)])
            await until(lambda at=at: len(it.arrived) > at)  # type: ignore[misc]
        assert set(it.arrived) == {403}
        assert it.backend.prompts == []


async def test_another_page_cannot_listen_nor_open_a_websocket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with attack(tmp_path, caplog) as it:
        assert await it.script(SOURCE, it.url(STREAM)) == "closed"
        for path in ("/api/stream/ws", STREAM):
            assert await it.script(SOCKET, it.url(path, "ws")) == "closed"
        assert it.arrived == [403] * 3
        assert it.backend.prompts == []


async def test_a_page_without_an_origin_of_its_own_cannot_ask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with attack(tmp_path, caplog, allowed_origins=["null"]) as it:
        assert await it.script(SANDBOXED, it.url(CHAT)) == "error"
        await it.page.goto("data:text/html,<body></body>")
        assert [one[0] for one in await it.script(FETCHES, it.url(CHAT))].count("basic") == 0
        assert set(it.arrived) == {403}
        assert it.backend.prompts == []


async def test_a_link_on_another_page_leads_to_our_page_and_to_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with attack(tmp_path, caplog) as it:
        for path in (STREAM, "/"):
            await it.page.evaluate("url => { location.href = url }", it.url(path))
            await it.page.wait_for_url(it.url("/**"))
            await it.page.go_back()
        assert it.arrived[0] == 403
        assert it.arrived[1] in (200, 404)
        assert it.backend.prompts == []


async def test_a_name_that_was_led_here_is_not_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For the browser the page and the gateway are one then: nothing is foreign but the name."""
    async with attack(tmp_path, caplog) as it:
        rebound = f"http://{REBOUND}:{it.served.port}"
        await it.page.goto(f"{rebound}/")
        for path in (CHAT, STREAM, "/api/session"):
            told = await it.script(FETCHES, rebound + path)
            assert [(kind, status) for kind, status, _ in told] == [("basic", 421)] * len(told)
        assert await it.script(SOURCE, rebound + STREAM) == "closed"
        assert await it.script(SOCKET, f"ws://{REBOUND}:{it.served.port}/api/stream/ws") == "closed"
        assert set(it.arrived) == {421}
        assert it.backend.prompts == []


async def test_a_cookie_of_ours_does_not_help_another_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For the browser all ports of a host are one site: it sends the cookie along."""
    async with attack(tmp_path, caplog, "127.0.0.1", require_key=True) as it:
        _, text = it.served.key()
        page = await it.page.context.new_page()
        await page.goto(it.url("/nothing"))
        enter = "async key => (await fetch('/api/session', {method: 'POST', body: JSON.stringify({key})})).status"
        assert await page.evaluate(enter, text) == 200
        ask = "async url => (await fetch(url, {method: 'POST', body: '{\"message\": \"mine\"}'})).status"
        assert await page.evaluate(ask, CHAT) == 200
        assert await page.evaluate(SOURCE, f"{CHAT}/stream?message=mine") == "open"
        assert await page.evaluate("document.cookie") == ""
        before = len(it.arrived)
        await it.script(FETCHES, it.url(CHAT))
        await it.script(POSTS, [it.url(CHAT), "text/plain"])
        await it.script(LOADS, ["img", "src", it.url(STREAM)])
        assert await it.script(SOCKET, it.url("/api/stream/ws", "ws")) == "closed"
        assert set(it.arrived[before:]) == {403}
        assert it.backend.questions == ["mine", "mine"]


async def test_a_page_that_is_listed_may_ask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with attack(tmp_path, caplog, is_listed=True) as it:
        told = await it.script(FETCHES, it.url(CHAT))
        read = [status for kind, status, _ in told if kind == "cors"]
        assert read == [
            200,
            200,
            405,
        ]  # two POSTs, one of them asked for beforehand, and a GET, which this route is not for
        assert await it.script(SOURCE, it.url(STREAM)) == "open"
        assert await it.script(LOADS, ["img", "src", it.url(STREAM)]) == "error"  # which says not whose page it is


async def test_our_own_page_may_do_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with attack(tmp_path, caplog) as it:
        for host in ("127.0.0.1", "localhost"):
            own = f"http://{host}:{it.served.port}"
            try:
                await it.page.goto(f"{own}/")
            except Error:
                pass  # there may be no page yet
            ask = "async url => (await fetch(url, {method: 'POST', body: '{\"message\": \"mine\"}'})).status"
            assert await it.page.evaluate(ask, own + CHAT) == 200
            assert await it.page.evaluate(SOURCE, f"{own}{CHAT}/stream?message=mine") == "open"
        assert it.backend.questions == ["mine"] * 4
