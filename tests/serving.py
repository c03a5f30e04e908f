"""A specialist served in the test's own loop on a port of its own, and clients that send any bytes they like."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
from ports import free_port

from daemon.backends import Backend
from daemon.listen import bind
from daemon.server import Server
from daemon.specialist import Specialist
from protocol.settings import Backend as BackendSettings
from protocol.settings import Limits, SpecialistConfig

Json = dict[str, Any]
BIG = 256 * 1_048_576  # the longest line that a client here takes


def config_in(folder: Path, **changes: Any) -> SpecialistConfig:
    """The configuration of one specialist; what belongs into [limits] is put there."""
    limits = {name: changes.pop(name) for name in list(changes) if name in Limits.__struct_fields__}
    plain = SpecialistConfig(
        name="apollo",
        addresses=["127.0.0.1", "::1"],
        port=45012,
        persona="You are Apollo.",
        description="Looks ahead.",
        capabilities=["forecasts"],
        model=None,
        backend=BackendSettings(),
        url="http://127.0.0.1:11434",
        url_asked_for=False,
        api_key=None,
        options={},
        limits=Limits(**limits),
        grace=1.0,
        retention_days=1.0,
        allowed_uids=[],
        data_dir=str(folder),
        state_dir=str(folder),
    )
    return msgspec.structs.replace(plain, **changes)


class Client:
    """One connection as a program has it. `abandon` resets it, as the kernel does for a process with unread input."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def socket(self) -> Any:
        return self.writer.get_extra_info("socket")

    def send(self, *messages: Json | bytes | str) -> None:
        """Sends messages in one write: bytes as they are, a text or an object as a line."""
        self.writer.write(b"".join(_line(message) for message in messages))

    def end(self) -> None:
        """No more questions."""
        self.writer.write_eof()

    async def text(self) -> str:
        """The next line without its end; "" at the end."""
        return (await self.reader.readline()).decode().removesuffix("\n")

    async def reply(self) -> Json:
        line = await self.reader.readline()
        assert line, "the connection ended where a reply was due"
        reply: Json = json.loads(line)
        return reply

    async def ask(self, message: Json | bytes | str) -> Json:
        self.send(message)
        return await self.reply()

    async def until(self, kind: str) -> list[Json]:
        """The replies up to and with the first of this type."""
        replies = [await self.reply()]
        while replies[-1]["type"] != kind:
            replies.append(await self.reply())
        return replies

    async def rest(self) -> bytes:
        """Everything up to the end."""
        return await self.reader.read()

    async def replies(self) -> list[Json]:
        """All replies up to the end of the connection."""
        return [json.loads(line) for line in (await self.rest()).splitlines()]

    def abandon(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.transport.abort()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass


class Port:
    """Where a specialist listens, and who was connected to it by a test."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.clients: list[Client] = []

    async def connect(self, host: str = "127.0.0.1") -> Client:
        client = Client(*await asyncio.open_connection(host, self.port, limit=BIG))
        self.clients.append(client)
        return client


class Served(Port):
    """A specialist that serves. `stop` ends it, `ended` says that it did."""

    def __init__(self, server: Server, port: int) -> None:
        super().__init__(port)
        self.server = server
        self.specialist = server.specialist
        self.stop = anyio.Event()
        self.ended = anyio.Event()

    async def run(self, listeners: list[socket.socket], grace: float) -> None:
        await self.server.serve(listeners, self.stop, grace)
        self.ended.set()


@asynccontextmanager
async def serving(backend: Backend, folder: Path, *, grace: float = 0.0, **changes: Any) -> AsyncGenerator[Served]:
    """Serves until the end of the block; then everything that it started has ended."""
    config = config_in(folder, **changes)
    port = free_port()
    listeners = bind([(address, port) for address in config.addresses])
    specialist = Specialist(msgspec.structs.replace(config, port=port), backend)
    served = Served(Server(specialist), port)
    try:
        async with anyio.create_task_group() as house:
            await house.start(specialist.run)
            house.start_soon(served.run, listeners, grace)
            yield served
            served.stop.set()
            for client in served.clients:
                await client.close()
            with anyio.fail_after(5):
                await served.ended.wait()
            house.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.close()
        for client in served.clients:
            client.writer.transport.abort()
        await specialist.sessions.close()


async def until(condition: Callable[[], object]) -> None:
    """Lets the others run until something holds; the deadline is the test's."""
    while not condition():
        await anyio.lowlevel.checkpoint()


def _line(message: Json | bytes | str) -> bytes:
    if isinstance(message, bytes):
        return message
    return (message if isinstance(message, str) else json.dumps(message)).encode() + b"\n"
