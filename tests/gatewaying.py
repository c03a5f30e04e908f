"""A gateway served in the test's own loop, in front of specialists served there too; all over real sockets.

async with gateway(tmp_path, apollo=ScriptedBackend("Hel", "lo")) as served:
    assert (await served.post("/api/chat/apollo", message="hi"))["content"] == "Hello"
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import anyio
from aiohttp import web
from msgspec.structs import replace
from serving import Json, Served, serving
from team import Team

from daemon.backends import Backend
from protocol.settings import Colleague, Gateway, GatewayConfig, Limits
from supervisor.gateway import keys
from supervisor.gateway.app import build
from supervisor.gateway.follow import USUAL, Patience
from supervisor.gateway.house import House
from supervisor.gateway.keys import KeyScope
from supervisor.gateway.tls import Certificate

DOCS = Path(__file__).resolve().parents[1] / "docs" / "gateway.md"


def documented(kind: str, url: str) -> str:
    """The code block of this kind in the gateway's documentation, for a gateway at this place."""
    text = DOCS.read_text(encoding="utf-8")
    [block] = re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(block).replace("http://127.0.0.1:8003", url)


class Event:
    """One server-sent event, as it came."""

    def __init__(self, block: str) -> None:
        self.name, self.id, self.data = "message", "", ""
        for line in block.split("\n"):
            field, _, value = line.partition(": ")
            match field.rstrip(":"):
                case "event":
                    self.name = value
                case "id":
                    self.id = value
                case "data":
                    self.data = value

    @property
    def json(self) -> Json:
        told: Json = json.loads(self.data)
        return told

    def __repr__(self) -> str:
        return f"{self.name} {self.id} {self.data}"


class Events:
    """A stream of events being read."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self._rest = b""

    @property
    def stream_id(self) -> str:
        return self.response.headers["X-Stream-Id"]

    async def blocks(self) -> AsyncIterator[str]:
        """What stands between blank lines, comments too."""
        async for chunk in self.response.content.iter_any():
            *whole, self._rest = (self._rest + chunk).split(b"\n\n")
            for one in whole:
                yield one.decode()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events()

    async def _events(self) -> AsyncIterator[Event]:
        async for block in self.blocks():
            if "data:" in block:
                yield Event(block)

    async def until(self, name: str) -> list[Event]:
        """The events up to and with the first of this name."""
        seen = []
        async for event in self:
            seen.append(event)
            if event.name == name:
                return seen
        raise AssertionError(f"the stream ended without {name}: {seen}")

    async def all(self) -> list[Event]:
        return [event async for event in self]


class Raw:
    """A response as its bytes came. Its status is 0 where nothing came."""

    def __init__(self, head: bytes, body: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1]) if first else 0
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.body = body

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> Self:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return cls(b"", b"")
        length = cls(head, b"").headers.get("content-length")
        return cls(head, await (reader.read() if length is None else reader.readexactly(int(length))))


class ServedGateway:
    """The gateway, and those who are behind it."""

    def __init__(self, house: House, port: int, session: aiohttp.ClientSession, behind: dict[str, Served]) -> None:
        self.house = house
        self.port = port
        self.session = session
        self.behind = behind

    @property
    def url(self) -> str:
        scheme = "https" if self.house.config.settings.tls_certificate else "http"
        return f"{scheme}://127.0.0.1:{self.port}"

    async def request(self, method: str, path: str, **how: Any) -> tuple[int, Any, aiohttp.ClientResponse]:
        """One request: its status, its JSON, and the response."""
        async with self.session.request(method, self.url + path, **how) as response:
            text = await response.text()
            return response.status, json.loads(text) if "json" in response.content_type else text, response

    async def get(self, path: str, **how: Any) -> Any:
        status, told, _ = await self.request("GET", path, **how)
        assert status == 200, told
        return told

    async def post(self, path: str, **body: Any) -> Any:
        status, told, _ = await self.request("POST", path, json=body)
        assert status == 200, told
        return told

    async def raw(self, *lines: str | bytes, body: bytes = b"") -> Raw:
        """A request line and headers as they are given, and the response to them. Text is sent as UTF-8."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = [line.encode() if isinstance(line, str) else line for line in lines]
        writer.write(b"\r\n".join([*head, b"Connection: close", b"", body]))
        try:
            return await Raw.read(reader)
        finally:
            writer.close()

    def key(self, scope: KeyScope = "chat", expires: float | None = None) -> tuple[str, str]:
        """A new key of this gateway: its id, and its text."""
        key, text = keys.make(scope, expires=expires)
        path = Path(self.house.config.data_dir) / keys.FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        keys.add(path, key)
        return key.id, text

    def revoke(self, key_id: str) -> None:
        assert keys.remove(Path(self.house.config.data_dir) / keys.FILE, key_id)

    @asynccontextmanager
    async def events(self, method: str, path: str, **how: Any) -> AsyncGenerator[Events]:
        """A stream; leaving the block leaves the stream."""
        async with self.session.request(method, self.url + path, **how) as response:
            assert response.status == 200, await response.text()
            assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            yield Events(response)


def config_in(folder: Path, roster: list[Colleague], **settings: Any) -> GatewayConfig:
    """The configuration of a gateway; what is given goes into its settings, `connections` and `allowed_uids` beside them."""
    connections, allowed_uids = settings.pop("connections", 4096), settings.pop("allowed_uids", [])
    return GatewayConfig(
        places=[(settings.get("host", "127.0.0.1"), 8003)],
        limits=Limits(connections=connections),
        settings=Gateway(**settings),
        roster=roster,
        grace=1.0,
        retention_days=1.0,
        allowed_uids=allowed_uids,
        socket=str(folder / "no-supervisor.sock"),
        data_dir=str(folder),
        state_dir=str(folder),
    )


@asynccontextmanager
async def gateway(
    folder: Path, settings: dict[str, Any] | None = None, patience: Patience = USUAL, /, **team: Backend
) -> AsyncGenerator[ServedGateway]:
    """A gateway in front of these specialists, until the end of the block."""
    async with AsyncExitStack() as stack:
        behind = {
            name: await stack.enter_async_context(serving(backend, folder / name, name=name))
            for name, backend in team.items()
        }
        roster = [Colleague(name, "127.0.0.1", served.port) for name, served in behind.items()]
        config = config_in(folder, roster, **(settings or {}))
        yield await stack.enter_async_context(served_by(config, behind, patience))


@asynccontextmanager
async def gateway_of(team: Team, **settings: Any) -> AsyncGenerator[ServedGateway]:
    """A gateway in front of a team that is up, with its supervisor's socket and folders."""
    state = team.home / ".local/state/chorus"
    roster = [Colleague(one["name"], one["host"], one["port"]) for one in team.status()["specialists"]]
    config = replace(
        config_in(state, roster, **settings),
        socket=(state / "socket").read_text().strip(),
        log_dir=str(state / "logs"),
    )
    async with served_by(config, {}) as served:
        yield served


@asynccontextmanager
async def served_by(
    config: GatewayConfig, behind: dict[str, Served], patience: Patience = USUAL
) -> AsyncGenerator[ServedGateway]:
    """A gateway of this configuration, on a free port."""
    house = House(config, patience)
    async with anyio.create_task_group() as group:
        await group.start(house.run)
        runner = web.AppRunner(build(house), shutdown_timeout=1.0)
        await runner.setup()
        own = house.config.settings
        tls = Certificate(own.tls_certificate, own.tls_key).context if own.tls_certificate and own.tls_key else None
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        port = runner.addresses[0][1]
        try:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
                yield ServedGateway(house, port, session, behind)
        finally:
            await house.drain(0.0)
            await runner.cleanup()
            group.cancel_scope.cancel()
    await asyncio.sleep(0)
