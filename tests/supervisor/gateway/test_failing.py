"""What callers are told when something behind the gateway is slow, broken or gone; and that it is over when it is over."""

from __future__ import annotations

import json
import os
import re
import signal

import anyio
from fronting import WITHIN, Front, program
from lookalikes.ollama import Script

WORDS = ("one ", "two ", "three ")
STEPPED = Script(tokens=WORDS, stepped=True)


def curl(front: Front, path: str = "/stream") -> tuple[str, ...]:
    return ("curl", "-sN", "-i", f"{front.url}/api/chat/apollo{path}", "-d", '{"message": "count"}')


async def works_again(front: Front) -> None:
    front.server.use(Script(tokens=WORDS))
    told = "HTTP/1.1 503"
    with anyio.fail_after(WITHIN):
        while told.startswith("HTTP/1.1 503"):  # until the gateway has heard of it
            async with program(*curl(front, path="")) as client:
                told = await client.ends()
    assert '"content":"one two three "' in told


def events(printed: str) -> list[tuple[str, str]]:
    return re.findall(r"^event: (.*)\ndata: (.*)$", printed, re.MULTILINE)


def kinds(printed: str) -> list[str]:
    """The names of events, each once: tokens that come together may be one."""
    return list(dict.fromkeys(name for name, _ in events(printed)))


async def test_a_slow_specialist_is_waited_for_with_the_status_line_sent(front: Front) -> None:
    front.server.use(Script(tokens=WORDS, hold=True))
    async with program(*curl(front)) as client:
        await client.prints('"phase":"prefill"')
        front.server.let_go()
        assert kinds(await client.ends()) == ["status", "token", "complete", "done"]


async def test_a_specialist_that_is_killed_is_an_error_with_what_had_arrived(front: Front) -> None:
    front.server.use(STEPPED)
    async with program(*curl(front)) as client:
        front.server.step()
        await client.prints("one ")
        front.team.signal("apollo", signal.SIGKILL)
        told = events(await client.ends())
    assert [name for name, _ in told] == ["token", "error", "done"]
    error = json.loads(told[1][1])
    assert (error["partial"], error["specialist_id"]) == ("one ", "apollo")
    assert error["code"] == "unavailable"
    await works_again(front)


async def test_a_specialist_that_is_stopped_is_a_503_with_its_remedy(front: Front) -> None:
    front.team.run("stop", "apollo")
    try:
        for path in ("/stream", ""):
            async with program(*curl(front, path)) as client:
                told = await client.ends()
            assert told.startswith("HTTP/1.1 503 ")
            assert "application/problem+json" in told
            assert "Retry-After: " in told
            assert re.search("chorus (start|status) apollo", told)  # status, where the gateway has not heard of it yet
    finally:
        front.team.run("start", "apollo")
    await works_again(front)


async def test_answers_go_on_without_a_supervisor(front: Front) -> None:
    front.server.use(STEPPED)
    async with program(*curl(front)) as client:
        front.server.step()
        await client.prints("one ")
        os.kill(front.team.status()["supervisor"]["pid"], signal.SIGKILL)
        front.server.step()
        front.server.step()
        assert kinds(await client.ends()) == ["token", "complete", "done"]
    try:
        await works_again(front)
    finally:
        front.team.run("up")


async def test_a_model_server_that_is_down_is_a_502(front: Front) -> None:
    with front.server.absent():
        for path in ("/stream", ""):
            async with program(*curl(front, path)) as client:
                told = await client.ends()
            assert told.startswith("HTTP/1.1 502 ")
            assert '"code":"backend_down"' in told
    await works_again(front)


async def test_a_model_server_that_ends_in_the_middle_is_an_error_with_what_had_arrived(front: Front) -> None:
    front.server.use(Script(tokens=WORDS, ending="reset", after=2))
    async with program(*curl(front)) as client:
        told = events(await client.ends())
    assert [name for name, _ in told][-2:] == ["error", "done"]
    error = json.loads(told[-2][1])
    assert (error["code"], error["partial"]) == ("model_error", "one two ")
    await works_again(front)
