"""Something that looks like Ollama over a real socket, and fails on command.

In a test: `async with OllamaLookalike(Script(tokens=("a", "b"))) as server: server.url`. The script may be
replaced between requests. By itself: `python tests/lookalikes/ollama.py --port 11600 --tokens 1000000 --burst
500`.

As the real one: nothing is sent before the first event, not even the status line; each line is a chunk of its
own; a client that leaves while a model is loading for it aborts that load.
"""

from __future__ import annotations

if __name__ == "__main__":
    import sys
    from pathlib import Path

    # This folder holds names that others import (openai, ollama): only its parent belongs on the path.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from lookalikes.raw_http import RawServer, Reply, Request, framed
from msgspec import Struct, field

NDJSON = "application/x-ndjson"
NOW = "2026-11-20T12:00:00.123456789Z"
FIGURES = {
    "total_duration": 5_000_000_000,
    "load_duration": 2_000_000,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 500_000_000,
    "eval_count": 3,
    "eval_duration": 1_000_000_000,
}


class Model(Struct, frozen=True):
    """One installed model."""

    capabilities: tuple[str, ...] = ("completion",)
    context_length: int = 4096
    digest: str = "f00d"


class Refusal(Struct, frozen=True):
    """An answer that is no 200. `text` goes into `error`; `raw` is sent as it is instead."""

    status: int
    text: str = ""
    headers: dict[str, str] = {}
    raw: bytes | None = None


class Script(Struct, frozen=True, kw_only=True):
    """What the server does with the next questions.

    `ending` comes after `after` tokens, or after all. `cut` sends every line in chunks of so many bytes.
    `burst` puts so many lines into one write, with no thought for each. Where it is `stamped`, each token is the time at which
    it was written, in nanoseconds of the steady clock. `hold` waits for `let_go()` before the first event, `stepped` for one
    of `steps` before each, and `slow_load` for `let_load()` while a model is loaded.
    """

    tokens: tuple[str, ...] = ("Hello", ",", " world")
    thinking: tuple[str, ...] = ()
    ending: Literal["done", "eof", "error", "reset", "close", "stall", "garbage"] = "done"
    after: int | None = None
    done_reason: str = "stop"
    figures: dict[str, int] = field(default_factory=lambda: dict(FIGURES))
    refusal: Refusal | None = None
    has_chat: bool = True
    endless: bool = False
    hold: bool = False
    stepped: bool = False
    slow_load: bool = False
    load_refusal: Refusal | None = None
    cut: int | None = None
    burst: int | None = None
    rate: float | None = None
    stamped: bool = False
    delay_first: float = 0.0
    tags_show_capabilities: bool = False
    last_token_in_done: bool = False
    after_done: Literal["end", "later", "stay"] = "end"
    look_refusal: Refusal | None = None
    look_garbage: bytes | None = None
    pull_error: str | None = None


USUAL = Script()


class OllamaLookalike(RawServer):
    """The server. `loaded` and `models` are what a test may look at and change."""

    def __init__(self, script: Script = USUAL, *, models: dict[str, Model] | None = None, port: int = 0) -> None:
        super().__init__(self._answer, port)
        self.script = script
        self.models = models if models is not None else {"tiny:latest": Model()}
        self.loaded: set[str] = set()
        self.loads_begun = 0
        self.loads_aborted = 0
        self._gate = asyncio.Event()
        self.steps = asyncio.Semaphore(0)  # events that an answer which is stepped may send
        self._load_gate = asyncio.Event()

    def asked(self, path: str = "/api/chat") -> list[Request]:
        """The questions that came, without those that only load a model."""
        return [one for one in self.requests if one.path == path and one.body.get("messages") != []]

    def let_go(self) -> None:
        """Lets those go on that are held before their first event; later ones are held again."""
        self._gate.set()
        self._gate = asyncio.Event()

    def let_load(self) -> None:
        self._load_gate.set()

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _answer(self, request: Request, reply: Reply) -> None:
        script = self.script
        if request.path in ("/api/chat", "/api/generate"):
            if request.path == "/api/chat" and not script.has_chat:
                reply.whole(404, b"404 page not found", "text/plain")
            else:
                await self._generate(request, reply, script)
        elif request.path in ("/api/tags", "/api/ps") and (script.look_refusal or script.look_garbage is not None):
            if script.look_refusal:
                _refuse(reply, script.look_refusal)
            else:
                await reply.raw(script.look_garbage or b"")
                reply.close()
        elif request.path == "/api/pull":
            await self._pull(request, reply, script)
        elif request.path in ("/api/tags", "/api/ps", "/api/show", "/api/embed", "/api/version", "/"):
            self._answer_at_once(request, reply, script)
        else:
            reply.whole(404, b"404 page not found", "text/plain")

    def _answer_at_once(self, request: Request, reply: Reply, script: Script) -> None:
        model = _full(request.body.get("model", ""))
        if request.path == "/api/tags":
            reply.json({"models": [_tag(name, one, script) for name, one in self.models.items()]})
        elif request.path == "/api/ps":
            until = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
            loaded = [
                {"name": n, "expires_at": until, "context_length": self.models[n].context_length} for n in self.loaded
            ]
            reply.json({"models": loaded})
        elif request.path == "/":
            reply.whole(200, b"Ollama is running", "text/plain")
        elif request.path == "/api/version":
            reply.json({"version": "0.24.0"})
        elif model not in self.models:
            quoted = (
                f'model "{model}" not found, try pulling it first'
                if request.path == "/api/embed"
                else f"model '{model}' not found"
            )
            reply.json({"error": quoted}, 404)
        elif request.path == "/api/show":
            reply.json({"capabilities": list(self.models[model].capabilities)})
        else:
            texts = request.body["input"]
            texts = [texts] if isinstance(texts, str) else texts
            reply.json({"model": request.body["model"], "embeddings": [[float(len(text)), 1.0] for text in texts]})

    async def _generate(self, request: Request, reply: Reply, script: Script) -> None:
        body = request.body
        model = _full(body.get("model", ""))
        is_load = not (body.get("messages") if request.path == "/api/chat" else body.get("prompt"))
        if model not in self.models:
            reply.json({"error": f"model '{body.get('model')}' not found"}, 404)
            return
        if body.get("think") and "thinking" not in self.models[model].capabilities:
            reply.json({"error": f'"{model}" does not support thinking'}, 400)
            return
        refusal = script.load_refusal if is_load else script.refusal
        if refusal is not None:
            _refuse(reply, refusal)
            return
        if model not in self.loaded:
            await self._load(model, script)
        if is_load:
            reply.json({"model": model, "created_at": NOW, "done": True, "done_reason": "load"})
            return
        if script.hold:
            await self._gate.wait()
        if script.delay_first:
            await asyncio.sleep(script.delay_first)
        await self._stream(reply, script, _Lines(request.path, model))

    async def _load(self, model: str, script: Script) -> None:
        self.loads_begun += 1
        try:
            if script.slow_load:
                await self._load_gate.wait()
        except asyncio.CancelledError:
            self.loads_aborted += 1
            raise
        self.loaded.add(model)

    async def _stream(self, reply: Reply, script: Script, lines: _Lines) -> None:
        tokens: Iterator[str] = iter(script.tokens)
        if script.endless:
            tokens = itertools.cycle(script.tokens)
        if script.burst:
            await self._stream_in_blocks(reply, script, lines)
        else:
            events = [lines.event(thinking=text) for text in script.thinking]
            await self._stream_one_by_one(reply, script, lines, itertools.chain(events, map(lines.event, tokens)))
        await self._end(reply, script, lines)

    async def _stream_one_by_one(self, reply: Reply, script: Script, lines: _Lines, events: Iterator[bytes]) -> None:
        began = time.monotonic()
        for number, event in enumerate(itertools.islice(events, script.after)):
            if script.stepped:
                await self.steps.acquire()
            if script.rate:
                await asyncio.sleep(max(0.0, began + number / script.rate - time.monotonic()))
            if not reply.started:
                reply.start(200, NDJSON)
            await reply.chunk(lines.event(f"{time.monotonic_ns()} ") if script.stamped else event, script.cut)

    async def _stream_in_blocks(self, reply: Reply, script: Script, lines: _Lines) -> None:
        assert script.burst
        reply.start(200, NDJSON)
        chunks = [framed(lines.event(token)) for token in script.tokens[: script.burst]]
        block = b"".join(chunks)
        whole, rest = divmod(len(script.tokens), len(chunks))
        for _ in itertools.repeat(None) if script.endless else range(whole):
            await reply.raw(block)
        await reply.raw(b"".join(chunks[:rest]))

    async def _end(self, reply: Reply, script: Script, lines: _Lines) -> None:
        ending = script.ending
        if ending == "stall":
            await asyncio.Event().wait()
        elif ending == "reset":
            reply.reset()
        elif ending == "close":
            reply.close()
        else:
            if not reply.started:
                reply.start(200, NDJSON)
            if ending == "error":
                await reply.chunk(
                    json.dumps({"error": "an error was encountered while running the model: boom"}).encode() + b"\n"
                )
            elif ending == "garbage":
                await reply.chunk(b"<html>\n")
            elif ending == "done":
                last = {"done": True, "done_reason": script.done_reason, **script.figures}
                await reply.chunk(lines.event("!" if script.last_token_in_done else "", last=last))
            if script.after_done == "stay":
                await asyncio.Event().wait()
            elif script.after_done == "later":
                await self._gate.wait()
            reply.end()

    async def _pull(self, request: Request, reply: Reply, script: Script) -> None:
        """Progress as the real one reports it; failures come after a 200 too."""
        reply.start(200, NDJSON)
        digest = "sha256:" + "ab" * 32
        steps: list[dict[str, Any]] = [{"status": "pulling manifest"}]
        if script.pull_error:
            steps.append({"error": script.pull_error})
        else:
            layer = {"status": f"pulling {'ab' * 6}", "digest": digest, "total": 1000}
            steps += [layer, *({**layer, "completed": done} for done in (250, 500, 1000))]
            steps += [
                {"status": "verifying sha256 digest"},
                {"status": "writing manifest"},
                {"status": "success"},
            ]
        for step in steps:
            await reply.chunk(json.dumps(step).encode() + b"\n")
        reply.end()
        if not script.pull_error:
            self.models[_full(request.body.get("model") or request.body.get("name", ""))] = Model()


class _Lines:
    """The events of one answer, in the shape of its path."""

    def __init__(self, path: str, model: str) -> None:
        self._is_chat = path == "/api/chat"
        self._model = model

    def event(self, content: str = "", thinking: str = "", last: dict[str, Any] | None = None) -> bytes:
        text = {"thinking": thinking} if thinking else {}
        if self._is_chat:
            said: dict[str, Any] = {"message": {"role": "assistant", "content": content, **text}}
        else:
            said = {"response": content, **text}
        event = {"model": self._model, "created_at": NOW, **said, **(last or {"done": False})}
        return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _full(model: str) -> str:
    return model if ":" in model else model + ":latest"


def _tag(name: str, model: Model, script: Script) -> dict[str, Any]:
    tag: dict[str, Any] = {"name": name, "model": name, "size": 1, "digest": model.digest}
    return {**tag, "capabilities": list(model.capabilities)} if script.tags_show_capabilities else tag


def _refuse(reply: Reply, refusal: Refusal) -> None:
    if refusal.raw is not None:
        reply.whole(refusal.status, refusal.raw, "text/plain", refusal.headers)
    else:
        reply.json({"error": refusal.text}, refusal.status, refusal.headers)


async def main() -> None:
    parser = argparse.ArgumentParser(description="An Ollama look-alike; prints its address when it is ready.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="tiny:latest")
    parser.add_argument("--tokens", type=int, default=100, help="of each answer")
    parser.add_argument("--rate", type=float, help="tokens a second; as fast as it goes without")
    parser.add_argument("--stamped", action="store_true", help="each token is the time at which it was written")
    parser.add_argument("--delay-first", type=float, default=0.0, help="seconds before the first token")
    parser.add_argument("--burst", type=int, help="lines in one write; one without")
    parser.add_argument("--cold", action="store_true", help="the model is not loaded at the start")
    options = parser.parse_args()
    words = ("word ", "and ", "other ", "words ")
    script = Script(
        tokens=tuple(words[at % len(words)] for at in range(options.tokens)),
        rate=options.rate,
        stamped=options.stamped,
        delay_first=options.delay_first,
        burst=options.burst,
        figures={**FIGURES, "eval_count": options.tokens},
    )
    async with OllamaLookalike(script, models={_full(options.model): Model()}, port=options.port) as server:
        if not options.cold:
            server.loaded.add(_full(options.model))
        print(server.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
