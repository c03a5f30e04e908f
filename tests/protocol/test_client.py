"""The client's own `cancel`, when it comes too late."""

from __future__ import annotations

import asyncio
import json

import anyio

from protocol.client import connect
from protocol.messages import Chat, Ping, Pong, StreamEnd

START = b'{"type":"stream_start","request_id":1,"ai_id":"a-ci","model":"m"}\n'
END = (
    b'{"type":"stream_end","request_id":1,"ai_id":"a-ci","model":"m","context":{},"timing":{"queued_ms":0,"total_ms":1},'
    b'"latency":0,"done_reason":"stop","metadata":{}}\n'
)
TOO_LATE = b'{"type":"error","request_id":"cancel-1","code":"not_found","error":"not under way","partial":""}\n'
PONG = b'{"type":"pong","request_id":2,"ai_id":"a-ci","status":"ok","pid":1,"instance":"i"}\n'


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(START)
    assert json.loads(await reader.readline())["type"] == "cancel"
    writer.write(END + TOO_LATE)
    await reader.readline()
    writer.write(PONG)
    await reader.read()
    writer.close()
    await writer.wait_closed()


async def test_a_cancel_that_came_too_late_is_not_the_answer_to_the_next_question() -> None:
    over = asyncio.Event()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve(reader, writer)
        over.set()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with anyio.fail_after(5):
        async with connect("127.0.0.1", port) as connection:
            replies = connection.ask(Chat(content="hello", stream=True))
            await anext(replies)
            await connection.cancel()
            assert [type(reply) async for reply in replies] == [StreamEnd]
            assert isinstance(await connection.call(Ping()), Pong)
        await over.wait()
    server.close()
    await server.wait_closed()
