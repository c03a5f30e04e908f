"""Something that looks like a server with OpenAI's protocol (llama.cpp, vLLM, LM Studio), and fails on command.

`async with OpenAILookalike(Script(...)) as server: server.url`. The flavours differ as the real ones do: in
the first chunk, in where the finish reason stands, in how an error comes.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

from lookalikes.raw_http import RawServer, Reply, Request
from msgspec import Struct

SSE = "text/event-stream"


class Script(Struct, frozen=True, kw_only=True):
    """What the server does with the next questions. `ending` comes after all tokens.

    `reasoning` is the name of the field that thinking goes into; `data` is what stands before each event.
    """

    tokens: tuple[str, ...] = ("Hello", ",", " world")
    thinking: tuple[str, ...] = ()
    reasoning: Literal["reasoning", "reasoning_content"] = "reasoning_content"
    finish_reason: str | None = "stop"
    finish_on_last_token: bool = False
    role_first: bool = True
    usage: bool = True
    timings: bool = False
    data: str = "data: "
    line_end: str = "\n"
    comments: bool = False
    ending: Literal["done", "eof", "error", "error_line", "error_text", "reset", "stall"] = "done"
    status: int = 200
    refusal: bytes = b""
    headers: dict[str, str] = {}
    whole_error: bytes | None = None  # a 200 that is no stream
    cut: int | None = None
    hold: bool = False
    models_status: int = 200
    models_body: bytes | None = None


USUAL = Script()


class OpenAILookalike(RawServer):
    """The server. It answers below /v1 only, and asks for `key` where one is given."""

    def __init__(self, script: Script = USUAL, *, models: tuple[str, ...] = ("tiny",), key: str | None = None) -> None:
        super().__init__(self._answer)
        self.script = script
        self.models = models
        self.key = key
        self._gate = asyncio.Event()

    def asked(self) -> list[Request]:
        """The questions that came."""
        return [one for one in self.requests if one.path.endswith("/chat/completions")]

    def let_go(self) -> None:
        self._gate.set()

    async def _answer(self, request: Request, reply: Reply) -> None:
        script = self.script
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            reply.json({"error": {"message": "Invalid API Key", "type": "authentication_error"}}, 401)
        elif request.path == "/v1/models":
            listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
            body = script.models_body if script.models_body is not None else json.dumps(listed).encode()
            reply.whole(script.models_status, body, "application/json")
        elif request.path == "/v1/embeddings":
            # The wrong way round: `index` says which is which.
            texts = list(enumerate(request.body["input"]))[::-1]
            data = [{"index": at, "embedding": [float(len(text))]} for at, text in texts]
            reply.json({"data": data, "model": request.body["model"]})
        elif request.path == "/v1/chat/completions":
            await self._complete(reply, script)
        else:
            reply.json({"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}, 404)

    async def _complete(self, reply: Reply, script: Script) -> None:
        if script.status != 200:
            reply.whole(script.status, script.refusal, "application/json", script.headers)
            return
        if script.whole_error is not None:
            reply.whole(200, script.whole_error, "application/json")
            return
        if script.hold:
            await self._gate.wait()
        for frame in _frames(script):
            if not reply.started:
                reply.start(200, SSE)
            await reply.chunk(frame.encode(), script.cut)
        await self._end(reply, script)

    async def _end(self, reply: Reply, script: Script) -> None:
        boom = {"code": 500, "message": "boom", "type": "server_error"}
        last = {
            "done": script.data + "[DONE]",
            "error": script.data + json.dumps({"error": boom}),
            "error_text": script.data + json.dumps({"error": "boom"}),
            "error_line": "error: " + json.dumps(boom),
        }.get(script.ending)
        if last is not None:
            await reply.chunk((last + 2 * script.line_end).encode())
        if script.ending == "reset":
            reply.reset()
        elif script.ending == "stall":
            await asyncio.Event().wait()
        else:
            reply.end()


def _frames(script: Script) -> list[str]:
    """All events up to the ending."""
    deltas: list[tuple[dict[str, Any], str | None]] = [
        ({"role": "assistant", "content": None}, None)
    ] * script.role_first
    deltas += [({script.reasoning: text}, None) for text in script.thinking]
    deltas += [({"content": text}, None) for text in script.tokens]
    if script.finish_on_last_token:
        deltas[-1] = (deltas[-1][0], script.finish_reason)
    elif script.finish_reason is not None:
        deltas.append(({}, script.finish_reason))
    events: list[dict[str, Any]] = [
        {
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        }
        for delta, reason in deltas
    ]
    if script.usage:
        events.append({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}})
    if script.timings:
        events[-1]["timings"] = {"predicted_per_second": 42.0, "prompt_per_second": 210.0, "prompt_ms": 57.0}
    gap = 2 * script.line_end
    frames = [script.data + json.dumps(event, ensure_ascii=False) + gap for event in events]
    return (
        [frame for pair in zip([": ping" + gap] * len(frames), frames, strict=True) for frame in pair]
        if script.comments
        else frames
    )
