"""The clients that people have, unchanged, against a real team: every token is there before the next one is let go."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
from fronting import NODE, WITHIN, Front, Program, program
from lookalikes.ollama import Script
from proxying import Proxy
from seed_clients import SSEClient, receive, received

from supervisor.sse import EventClient, Lost

HERE = Path(__file__).resolve().parents[2] / "clients"
WORDS = ("one ", "zwei ", "trois ", "четыре ", "五 ")
STEPPED = Script(tokens=WORDS, stepped=True)
ASK = {"message": "Explain knowledge graphs"}

REQUESTS = """
import sys, requests
with requests.post(sys.argv[1], json={"message": "count"}, stream=True) as response:
    for line in response.iter_lines(decode_unicode=True):
        print(line, flush=True)
"""

TEAM_CHAT = """
import json, sys, requests
response = requests.post(
    sys.argv[1] + "/api/team-chat",
    json={"message": "What should we optimize?"}
)
assert len(response.json()['responses']) > 0
print(json.dumps([one["content"] for one in response.json()["responses"]]))
"""


async def follows(client: Program, front: Front) -> None:
    """Lets every token go when the client has printed the one before."""
    for word in WORDS:
        front.server.step()
        await client.prints(word)


async def test_the_lines_of_curl_get_every_token_at_once(front: Front) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    front.server.use(STEPPED)
    asked = front.chat("athena-ai").replace("127.0.0.1", "localhost")
    line = ("curl", "-N", "-s", "-H", "Accept: text/event-stream", asked, "-d", json.dumps(ASK))
    async with program(*line) as curl:
        await follows(curl, front)
        assert (await curl.ends()).endswith("event: done\ndata: \n\n")
        assert curl.process.returncode == 0


async def test_requests_gets_every_token_at_once(front: Front) -> None:
    front.server.use(STEPPED)
    async with program(sys.executable, "-c", REQUESTS, front.chat("athena-ai")) as requests:
        await follows(requests, front)
        assert "event: done" in await requests.ends()


async def test_requests_has_a_team_answer(front: Front) -> None:
    front.server.use(Script(tokens=WORDS))
    async with program(sys.executable, "-c", TEAM_CHAT, front.url) as requests:
        assert json.loads(await requests.ends()) == ["".join(WORDS)] * 2
        assert requests.process.returncode == 0


async def test_the_first_client_of_the_shell_gets_every_token_at_once(front: Front) -> None:
    front.server.use(STEPPED)
    front.server.step()
    tokens = []
    with anyio.fail_after(WITHIN):
        async for token in receive(SSEClient(front.chat("athena-ai")), {"message": "count"}):
            tokens.append(token)
            front.server.step()
    assert tuple(tokens) == WORDS


async def test_the_readers_of_the_streaming_guide_get_every_token_at_once(front: Front) -> None:
    front.server.use(STEPPED)
    front.server.step()
    seen = []
    with anyio.fail_after(WITHIN):
        async for data in received(front.chat("athena-ai"), ASK):
            seen.append(data["content"])
            if data["type"] == "complete":
                break
            front.server.step()
    assert seen == [*WORDS, "".join(WORDS)]

    async with program(NODE, HERE / "fetching.mjs", front.chat("athena-ai"), json.dumps(ASK)) as node:
        await follows(node, front)
        await node.prints('"type":"complete"')


async def test_the_readers_of_the_streaming_guide_read_a_team_chat_to_its_end(front: Front) -> None:
    front.server.use(Script(tokens=WORDS))
    url = f"{front.url}/api/team-chat/stream"
    with anyio.fail_after(WITHIN):
        told = [data async for data in received(url, ASK)]
    assert [data["content"] for data in told if data.get("type") == "message"] == ["".join(WORDS)] * 2

    async with program(NODE, HERE / "fetching.mjs", url, json.dumps(ASK)) as node:
        assert (await node.ends()).count('"type":"message"') == 2
        assert node.process.returncode == 0


async def test_our_own_client_goes_on_where_it_was_cut_off(front: Front) -> None:
    front.server.use(STEPPED)
    asked, told, tokens = len(front.server.asked), list[Lost](), []
    async with Proxy(front.port) as proxy:
        proxy.cut_behind(b'"token":"zwei "', b'"token":"trois "')
        client = EventClient(proxy.url, tell=told.append)
        front.server.step()
        with anyio.fail_after(WITHIN):
            async with aclosing(client.post("/api/chat/athena-ai/stream", ASK)) as events:
                async for event in events:
                    if event.name == "token":
                        tokens.append(json.loads(event.data)["content"])
                        front.server.step()
    assert tuple(tokens) == WORDS
    assert told
    assert len(front.server.asked) == asked + 1


async def test_eventsource_in_node_goes_on_where_it_was_cut_off_and_ends_at_the_end(front: Front) -> None:
    front.server.use(STEPPED)
    asked = len(front.server.asked)
    async with Proxy(front.port) as proxy:
        proxy.cut_behind(b'"token":"zwei "', b'"token":"trois "')
        url = f"{proxy.url}/api/chat/athena-ai/stream?message=count"
        async with program(NODE, "--experimental-eventsource", HERE / "eventsource.mjs", url) as node:
            await follows(node, front)
            told = [json.loads(line) for line in (await node.ends()).splitlines()]
    tokens = [json.loads(one["data"])["content"] for one in told if one["name"] == "token"]
    assert tuple(tokens) == WORDS
    assert [one["name"] for one in told if one["name"] in ("complete", "done")] == ["complete", "done"]
    assert told[-1] == {"name": "error", "data": None, "id": "", "state": 2}
    assert len(proxy.requests) == 4  # the first, two after cuts, and the one that 204 ends
    assert len(front.server.asked) == asked + 1
