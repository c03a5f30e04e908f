"""The gateway's job with starlette, sse-starlette and uvicorn: one specialist's answer as server-sent events, and nothing else.

It has no ids, no ring, no file and no write deadline: a connection that breaks has lost the rest of its answer. The events are
the same to the byte, and JSON is read and written by the same library as ours.

usage: relay_starlette.py PORT PORT_OF_THE_SPECIALIST
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import msgspec
import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

PORT, SPECIALIST = int(sys.argv[1]), int(sys.argv[2])
decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode


async def stream(request: Request) -> EventSourceResponse:
    body = decode(await request.body())
    return EventSourceResponse(relayed(body["message"], request.path_params["id"]), sep="\n", ping=15)


async def relayed(content: str, name: str) -> AsyncIterator[dict[str, str]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", SPECIALIST)
    try:
        writer.write(encode({"type": "chat", "request_id": 1, "content": content, "stream": True}) + b"\n")
        async for line in reader:
            reply = decode(line)
            if reply["type"] == "stream_chunk":
                yield {"event": "token", "data": encode(token(name, reply["content"], reply["chunk_index"])).decode()}
            elif reply["type"] == "stream_end":
                yield {"event": "complete", "data": encode({"type": "complete", "summary": reply}).decode()}
                yield {"event": "done", "data": ""}
                return
    finally:
        writer.close()


def token(name: str, text: str, index: int) -> dict[str, object]:
    return {
        "event": "token",
        "data": {"token": text},
        "token": text,
        "specialist_id": name,
        "type": "chunk",
        "content": text,
        "metadata": {"chunk_index": index},
    }


app = Starlette(routes=[Route("/api/chat/{id}/stream", stream, methods=["POST"])])

if __name__ == "__main__":
    uvicorn.run(app, port=PORT, loop="uvloop", http="httptools", log_level="warning", access_log=False, backlog=4096)
