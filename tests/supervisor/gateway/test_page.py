"""The page, in a browser: the team live, one question, its answer as it comes, through a reload, by keyboard, and stopped."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import pytest_asyncio
from browsing import chromium
from fronting import WITHIN, Front
from gatewaying import gateway
from lookalikes.ollama import Script
from playwright.async_api import Browser, Page, expect
from scripted import EchoBackend

from supervisor.gateway import keys

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncGenerator[Browser]:
    async with chromium() as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncGenerator[Page]:
    """A page on which nothing may go wrong that a developer would see: no error, nothing that the policy refused."""
    context = await browser.new_context()
    context.set_default_timeout(WITHIN * 1000)
    expect.set_options(timeout=WITHIN * 1000)
    page = await context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if "Content Security Policy" in said.text else None)
    yield page
    await context.close()
    assert complaints == []


async def opened(page: Page, url: str) -> None:
    await page.goto(f"{url}/")
    await expect(page.get_by_role("radio")).to_have_count(3)


async def asks(page: Page, who: str, question: str) -> None:
    await page.get_by_role("radio", name=who).check(force=True)
    await page.get_by_label("Question").fill(question)
    await page.get_by_role("button", name="Ask").click()


async def test_the_team_is_shown_as_it_is_and_as_it_changes(page: Page, front: Front) -> None:
    await opened(page, front.url)
    await expect(page.get_by_role("status").first).to_contain_text("2 of 2 answer")
    await expect(page.get_by_role("radio", name="anybody")).to_be_checked()
    athena = page.get_by_role("radio", name="athena")
    await expect(athena).to_have_accessible_name(re.compile("^athena Says what is known, .* ready$"))
    os.kill(front.team.pid("athena"), signal.SIGKILL)
    happened = page.get_by_role("log")
    await expect(happened).to_contain_text("killed by SIGKILL")
    await expect(happened.get_by_role("listitem").first).to_contain_text("ready: answers")
    await expect(athena).to_have_accessible_name(re.compile("^athena .* ready$"))
    assert await anyio.to_thread.run_sync(front.team.run, "stop", "athena")
    await expect(athena).to_have_accessible_name(re.compile("^athena .* stopped$"))
    await expect(page.get_by_role("status").first).to_contain_text("1 of 2 answer")
    assert await anyio.to_thread.run_sync(front.team.run, "start", "athena")
    await expect(athena).to_have_accessible_name(re.compile("^athena .* ready$"))


async def test_an_answer_comes_as_it_grows_and_a_reload_goes_on_with_it(page: Page, front: Front) -> None:
    front.server.use(Script(tokens=("one ", "two ", "three"), stepped=True))
    await opened(page, front.url)
    await asks(page, "apollo", "count")
    text = page.get_by_role("region", name="Answer")
    front.server.step()
    await expect(text).to_have_text("one")
    front.server.step()
    await expect(text).to_have_text("one two")
    await page.reload()
    await expect(text).to_have_text("one two")
    await expect(page.get_by_role("heading", name="apollo")).to_be_visible()
    front.server.step()
    front.server.step()
    await expect(text).to_have_text("one two three")
    await expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    await page.reload()
    await expect(page.get_by_role("radio")).to_have_count(3)
    await expect(text).to_be_hidden()


async def test_stop_ends_it_at_the_model_server_and_keeps_what_was_said(page: Page, front: Front) -> None:
    front.server.use(Script(tokens=("one ", "two "), stepped=True))
    await opened(page, front.url)
    await asks(page, "apollo", "count")
    front.server.step()
    await expect(page.get_by_role("region", name="Answer")).to_have_text("one")
    await page.get_by_role("button", name="Stop").click()
    await anyio.to_thread.run_sync(front.server.wait_left, 5.0)
    await expect(page.get_by_text("stopped", exact=True)).to_be_visible()
    await expect(page.get_by_role("region", name="Answer")).to_have_text("one")
    await expect(page.get_by_role("button", name="Ask")).to_be_enabled()


async def test_everything_can_be_done_by_keyboard(page: Page, front: Front) -> None:
    front.server.use(Script(tokens=("yes",)))
    await opened(page, front.url)
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("radio", name="anybody")).to_be_focused()
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("ArrowDown")
    await expect(page.get_by_role("radio", name="athena")).to_be_checked()
    await page.keyboard.press("Tab")
    await page.keyboard.type("are you there?")
    await page.keyboard.press("Control+Enter")
    await expect(page.get_by_role("heading", name="athena")).to_be_visible()
    await expect(page.get_by_role("region", name="Answer")).to_have_text("yes")
    await expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    front.server.use(Script(tokens=("no", " more"), stepped=True))
    await page.keyboard.press("Control+Enter")
    front.server.step()
    await expect(page.get_by_role("region", name="Answer")).to_have_text("no")
    await page.keyboard.press("Escape")
    await expect(page.get_by_text("stopped", exact=True)).to_be_visible()


async def test_whoever_the_rules_choose_is_named_with_the_reason(page: Page, front: Front) -> None:
    front.server.use(Script(tokens=("me",)))
    await opened(page, front.url)
    await asks(page, "anybody", "who?")
    await expect(page.get_by_role("region", name="Answer")).to_have_text("me")
    await expect(page.get_by_text("there are no rules: the best of all who answer")).to_be_visible()
    await expect(page.get_by_role("heading", name="anybody")).to_have_count(0)


async def test_what_a_model_says_is_text_and_nothing_else(page: Page, front: Front) -> None:
    said = "<img src=x onerror=\"document.title='taken'\"><b>bold</b> & done"
    front.server.use(Script(tokens=(said,)))
    await opened(page, front.url)
    await asks(page, "apollo", said)
    await expect(page.get_by_role("region", name="Answer")).to_have_text(said)
    await expect(page).to_have_title("chorus")
    await expect(page.locator("#answer img, #answer b")).to_have_count(0)


async def test_an_error_is_said_where_the_answer_would_be(page: Page, front: Front) -> None:
    front.server.use(Script(tokens=("Hel",), ending="error"))
    await opened(page, front.url)
    await asks(page, "apollo", "hi")
    await expect(page.locator("#trouble")).not_to_be_empty()
    await expect(page.get_by_role("region", name="Answer")).to_have_text("Hel")
    await expect(page.get_by_role("button", name="Ask")).to_be_enabled()


async def test_a_killed_gateway_is_come_back_to(page: Page, front: Front) -> None:
    front.server.use(Script(tokens=("yes",)))
    await opened(page, front.url)
    await anyio.to_thread.run_sync(front.kill)
    await expect(page.get_by_role("log")).to_contain_text("gateway")
    await expect(page.get_by_role("status").first).to_contain_text("2 of 2 answer")
    await asks(page, "apollo", "still there?")
    await expect(page.get_by_role("region", name="Answer")).to_have_text("yes")


async def test_where_a_key_is_needed_it_is_asked_for_once(page: Page, tmp_path: Path) -> None:
    key, secret = keys.make("chat")
    keys.add(tmp_path / keys.FILE, key)
    async with gateway(tmp_path, {"require_key": True}, apollo=EchoBackend()) as served:
        await page.goto(f"{served.url}/")
        await expect(page.get_by_label("A key is needed here")).to_be_focused()
        await expect(page.get_by_label("Question")).to_be_hidden()
        await page.keyboard.type("chorus_nonsense")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert").first).to_contain_text("this key is none of ours")
        await page.get_by_label("A key is needed here").fill(secret)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("radio")).to_have_count(2)
        await asks(page, "apollo", "hello there")
        await expect(page.get_by_role("region", name="Answer")).to_have_text("hello there")
        await page.reload()
        await expect(page.get_by_role("radio")).to_have_count(2)
