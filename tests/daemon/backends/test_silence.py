"""The one timer that watches for silence."""

from __future__ import annotations

import asyncio

import anyio

from daemon.backends.silence import Silence


async def test_it_says_so_once_the_limit_has_passed() -> None:
    told = asyncio.Event()
    silence = Silence(0.01, told.set)
    with anyio.fail_after(5):
        await told.wait()
    assert silence.broken


async def test_a_word_in_time_puts_it_off() -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    silence = Silence(0.1, told.set)
    began = loop.time()
    loop.call_later(0.05, setattr, silence, "since", began + 0.05)
    with anyio.fail_after(5):
        await told.wait()
    assert loop.time() - began >= 0.149


async def test_time_in_which_nobody_listens_does_not_count() -> None:
    told = asyncio.Event()
    silence = Silence(0.01, told.set)
    silence.since = None
    with anyio.move_on_after(0.05):
        await told.wait()
    assert not silence.broken
    silence.stop()


async def test_a_shorter_limit_holds_at_once() -> None:
    told = asyncio.Event()
    silence = Silence(600.0, told.set)
    silence.allow(0.01)
    with anyio.fail_after(5):
        await told.wait()
    assert silence.limit == 0.01


async def test_after_stop_it_says_nothing() -> None:
    told = asyncio.Event()
    silence = Silence(0.01, told.set)
    silence.stop()
    silence.allow(0.01)
    with anyio.move_on_after(0.05):
        await told.wait()
    assert not told.is_set()
