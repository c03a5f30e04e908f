"""Team chat and OpenAI's protocol with real processes: token by token, left, cut off and killed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from fronting import NODE, Front, program, wait_until
from lookalikes.ollama import Script
from proxying import Proxy

WORDS = ("one ", "two ", "three ")
STEPPED = Script(tokens=WORDS, stepped=True)
TEAM, OPENAI = "/api/team-chat", "/v1/chat/completions"

SDK = """
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="any", max_retries=0)
messages = [{"role": "user", "content": "count"}]
try:
    for chunk in client.chat.completions.create(model=sys.argv[2], messages=messages, stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
except openai.OpenAIError as error:
    print(type(error).__name__, getattr(error, "code", None), flush=True)
"""


def sdk(front: Front, model: str) -> tuple[str, ...]:
    return (sys.executable, "-c", SDK, front.url, model)


def curl(front: Front, path: str, **body: object) -> tuple[str, ...]:
    said = body or {"message": "count"}
    return ("curl", "-sN", "-i", front.url + path, "-d", json.dumps(said))


def leaving(front: Front, *, stream: bool) -> dict[str, tuple[str, ...]]:
    """Requests of both dialects."""
    messages = [{"role": "user", "content": "count"}]
    return {
        "team": curl(front, TEAM + ("/stream" if stream else "")),
        "openai": curl(front, OPENAI, model="team", messages=messages, stream=stream),
    }


async def test_openais_client_gets_every_token_at_once(front: Front) -> None:
    front.server.use(STEPPED)
    async with program(*sdk(front, "apollo")) as client:
        for word in WORDS:
            front.server.step()
            await client.prints(word)
        assert await client.ends() == "".join(WORDS)


async def test_a_team_chat_gives_every_token_at_once(front: Front) -> None:
    front.server.use(STEPPED)
    async with program(*curl(front, TEAM + "/stream", message="count", specialists=["apollo"])) as client:
        for word in WORDS:
            front.server.step()
            await client.prints(f'"token":"{word}"')
        assert (await client.ends()).endswith("event: done\ndata: {}\n\n")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("dialect", ["team", "openai"])
@pytest.mark.parametrize("at", ["before the first token", "in the middle"])
async def test_whoever_leaves_ends_everybodys_answer_within_a_second(
    front: Front, dialect: str, stream: bool, at: str
) -> None:
    front.server.use(STEPPED)
    before = len(front.server.asked)
    async with program(*leaving(front, stream=stream)[dialect]) as client:
        front.server.wait_asked(before + 2)
        if at == "in the middle":
            front.server.step()
            if stream:
                await client.prints("one ")
    ours = front.server.asked[before:]
    wait_until(lambda: all(one.gone.is_set() for one in ours), 1.0, "not every question was withdrawn")


async def test_event_source_in_node_reads_a_team_chat_over_cuts_and_ends_at_its_end(front: Front) -> None:
    front.server.use(STEPPED)
    asked = len(front.server.asked)
    script = Path(__file__).resolve().parents[2] / "clients/eventsource.mjs"
    async with Proxy(front.port) as proxy:
        proxy.cut_behind(b'"token":"one "', b'"token":"two "')
        url = f"{proxy.url}{TEAM}/stream?message=count&specialists=athena-ai"
        async with program(NODE, "--experimental-eventsource", script, url) as node:
            for word in WORDS:
                front.server.step()
                await node.prints(word)
            told = [json.loads(line) for line in (await node.ends()).splitlines()]
    tokens = [json.loads(one["data"])["token"] for one in told if one["name"] == "token"]
    assert tuple(tokens) == WORDS
    assert [one["name"] for one in told if one["name"] in ("complete", "done")] == ["complete", "done"]
    assert told[-1]["state"] == 2
    assert len(front.server.asked) == asked + 1


async def test_a_team_chat_that_was_killed_tells_whoever_comes_back_what_had_arrived(front: Front) -> None:
    front.server.use(STEPPED)
    async with program(*curl(front, TEAM + "/stream", message="count", specialists=["apollo"])) as client:
        front.server.step()
        await client.prints('"token":"one "')
        stream_id = client.printed.partition("X-Stream-Id: ")[2].split()[0]
        front.kill()
        await client.ends()
    retry = ("--retry", "20", "--retry-delay", "1", "--retry-connrefused")
    async with program("curl", "-sN", *retry, f"{front.url}/api/stream/events/{stream_id}") as client:
        told = re.findall(r"^event: (.*)\ndata: (.*)$", await client.ends(), re.MULTILINE)
    assert [name for name, _ in told][-2:] == ["error", "done"]
    error = json.loads(told[-2][1])
    assert (error["code"], error["responses_by_id"]) == ("gateway_restarted", {"apollo": "one "})


async def test_openais_client_is_told_of_a_model_server_that_breaks_off(front: Front) -> None:
    front.server.use(Script(tokens=WORDS, ending="reset", after=2))
    async with program(*sdk(front, "apollo")) as client:
        assert await client.ends() == "one two APIError model_error\n"
    with front.server.absent():
        async with program(*sdk(front, "apollo")) as client:
            assert await client.ends() == "InternalServerError backend_down\n"
