"""One specialist as a process of its own, with a backend that a test chose: `scripted_child.py NAME PORT FOLDER LIMITS`.

`spew` says a megabyte at a time for ever, `raise` fails, `stay` never says more than one word. LIMITS is JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio.lowlevel
from scripted import ScriptedBackend
from serving import config_in

from daemon import listen, process
from daemon.backends import Backend, Piece, Prompt, Step
from daemon.logs import start_logging
from protocol.settings import SpecialistConfig


class Spewing(ScriptedBackend):
    async def generate(self, prompt: Prompt) -> AsyncGenerator[Step, None]:
        if prompt.turns[-1].content != "spew":
            yield Piece(content="x")
            async for step in super().generate(prompt):
                yield step
            return
        while True:
            await anyio.lowlevel.checkpoint()
            yield Piece(content="x" * 1_000_000)


def backend(name: str) -> Backend:
    if name == "spew":
        return Spewing()
    return ScriptedBackend("Hel", ValueError("oops") if name == "raise" else asyncio.Event())


def main(name: str, port: str, folder: str, limits: str) -> None:
    config = config_in(Path(folder), port=int(port), **json.loads(limits))

    def chosen(_: SpecialistConfig) -> Backend:
        return backend(name)

    setattr(process, "open_backend", chosen)  # noqa: B010 - a name that it imports, and does not export
    start_logging(config.name, None, {})
    process.run(config, listen.bind(config.places))


if __name__ == "__main__":
    main(*sys.argv[1:])
