"""Who may knock, tried with the bytes that a browser or an attacker sends. What is refused reaches no model."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from gatewaying import Raw, ServedGateway, gateway
from scripted import EchoBackend

ASK = "POST /api/chat/apollo HTTP/1.1"
LOOK = "GET /api/chat/apollo/stream?message=hi HTTP/1.1"
BODY = b'{"message": "hi"}'
LENGTH = f"Content-Length: {len(BODY)}"
PAGES = {"allowed_origins": ["https://page.example"], "allowed_hosts": ["Box.example"]}


class Behind:
    """A gateway with the backend behind it."""

    def __init__(self, served: ServedGateway, backend: EchoBackend) -> None:
        self.served = served
        self.backend = backend

    async def ask(self, *headers: str | bytes, line: str = ASK) -> Raw:
        body, length = (BODY, [LENGTH]) if line.startswith("POST") else (b"", [])
        return await self.served.raw(line, *headers, *length, body=body)

    @property
    def asked(self) -> int:
        return len(self.backend.prompts)


@asynccontextmanager
async def knocking(folder: Path) -> AsyncGenerator[Behind]:
    backend = EchoBackend()
    async with gateway(folder, PAGES, apollo=backend) as served:
        with anyio.fail_after(30):
            yield Behind(served, backend)


def own(behind: Behind) -> str:
    return f"http://127.0.0.1:{behind.served.port}"


OURS = ("127.0.0.1", "LOCALHOST:1", "[::1]:99", "[0:0:0:0:0:0:0:1]", "box.example", "BOX.example:80")
NOT_OURS = (
    "evil.example",
    "evil.example:8003",
    "127.0.0.1.evil.example",
    "127.0.0.1@evil.example",
    "evil.example@127.0.0.1",
    "localhost.",
    "localhost.evil.example",
    "sub.box.example",
    "192.168.1.5",
    "0.0.0.0",
    "127.1",
    "2130706433",
    "[::ffff:127.0.0.1]",
    "127.0.0.1, evil.example",
    "١٢٧.٠.٠.١",
    "",
)
ROUTES = (ASK, LOOK, "GET / HTTP/1.1", "GET /nothing HTTP/1.1", "DELETE /api/stream/x HTTP/1.1", "OPTIONS / HTTP/1.1")


# -- Host ------------------------------------------------------------------------------------------------------------------


async def test_our_names_are_ours_at_any_port(tmp_path: Path) -> None:
    async with knocking(tmp_path) as behind:
        for host in OURS:
            assert (await behind.ask(f"Host: {host}", line="GET /api/session HTTP/1.1")).status == 200, host


async def test_another_name_is_refused_on_every_route(tmp_path: Path) -> None:
    async with knocking(tmp_path) as behind:
        for host in NOT_OURS:
            for line in ROUTES:
                assert (await behind.ask(f"Host: {host}", line=line)).status == 421, (host, line)
        assert behind.asked == 0


async def test_a_websocket_is_refused_as_any_route(tmp_path: Path) -> None:
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13")
    async with knocking(tmp_path) as behind:
        for line in ("GET /api/stream/ws HTTP/1.1", LOOK):
            assert (await behind.ask("Host: evil.example", *upgrade, line=line)).status == 421
            assert (
                await behind.ask("Host: 127.0.0.1", "Origin: http://evil.example", *upgrade, line=line)
            ).status == 403
        assert behind.asked == 0


async def test_two_hosts_broken_ones_and_none_are_refused(tmp_path: Path) -> None:
    async with knocking(tmp_path) as behind:
        for headers in (
            ("Host: 127.0.0.1", "Host: evil.example"),
            ("Host: evil.example", "Host: 127.0.0.1"),
            ("Host : 127.0.0.1",),
            (b"Host: 127.0.0.1\x00.evil.example",),
            ("Host: 127.0.0.1", " .evil.example"),
            (),
        ):
            assert (await behind.ask(*headers)).status == 400, headers
        assert (await behind.ask(line="GET /api/session HTTP/1.0")).status == 400
        assert behind.asked == 0


async def test_a_target_that_names_somebody_else_is_refused(tmp_path: Path) -> None:
    async with knocking(tmp_path) as behind:
        for target, status in (
            ("http://evil.example/api/chat/apollo", 400),
            ("http://127.0.0.1@evil.example/api/chat/apollo", 400),
            ("http://evil.example#127.0.0.1/api/chat/apollo", 400),
            ("http://evil.example?127.0.0.1/api/chat/apollo", 400),
            ("//evil.example/api/chat/apollo", 404),
            ("//127.0.0.1/api/chat/apollo", 404),
        ):
            assert (await behind.ask("Host: 127.0.0.1", line=f"POST {target} HTTP/1.1")).status == status, target
        assert (await behind.ask("Host: 127.0.0.1", line="CONNECT 127.0.0.1:80 HTTP/1.1")).status == 400
        assert (await behind.ask("Host: 127.0.0.1", line="OPTIONS * HTTP/1.1")).status == 404
        assert behind.asked == 0
        whole = "POST http://127.0.0.1:9/api/chat/apollo HTTP/1.1"
        assert (await behind.ask("Host: 127.0.0.1:9", line=whole)).status == 200  # the same Host is a path


async def test_an_address_is_ours_where_we_listen_on_all_of_them(tmp_path: Path) -> None:
    """Nobody can point an address elsewhere; a name, somebody can."""
    async with gateway(tmp_path, {"host": "0.0.0.0", "behind_proxy": True}, apollo=EchoBackend()) as served:
        served.key()
        with anyio.fail_after(5):
            for host, status in (("192.168.1.5", 200), ("[2001:db8::1]:8003", 200), ("evil.example", 421)):
                assert (await served.raw("GET /api/session HTTP/1.1", f"Host: {host}")).status == status


# -- Origin ----------------------------------------------------------------------------------------------------------------


async def test_our_own_page_may_ask(tmp_path: Path) -> None:
    async with knocking(tmp_path) as behind:
        for host in ("127.0.0.1", "localhost", "[::1]"):
            own = f"{host}:{behind.served.port}"
            told = await behind.ask(f"Host: {own}", f"Origin: http://{own}", "Sec-Fetch-Site: same-origin")
            assert told.status == 200
            assert "access-control-allow-origin" not in told.headers
        assert (await behind.ask("Host: localhost", "Origin: http://localhost:80")).status == 200


async def test_a_foreign_origin_is_refused_on_every_route(tmp_path: Path) -> None:
    async with knocking(tmp_path) as behind:
        port = behind.served.port
        for origin in (
            "null",
            "",
            "http://evil.example",
            f"https://127.0.0.1:{port}",
            "http://127.0.0.1",
            "http://127.0.0.1:1",
            f"http://localhost:{port}",
            f"http://127.0.0.1:{port}.evil.example",
            f"http://evil.example:{port}",
            f"http://127.0.0.1:{port}@evil.example",
            f"http://user@127.0.0.1:{port}",
            f"http://127.0.0.1:{port}/",
            f"http://127.0.0.1:{port} http://evil.example",
            "file://",
            "https://page.example.evil.example",
            "https://page.example:444",
            "http://page.example",
        ):
            for line in ROUTES:
                told = await behind.ask(f"Host: 127.0.0.1:{port}", f"Origin: {origin}", line=line)
                assert told.status == 403, (origin, line)
                assert json.loads(told.body)["code"] == "forbidden"
                assert "access-control-allow-origin" not in told.headers
        own = f"http://127.0.0.1:{port}"
        told = await behind.ask(f"Host: 127.0.0.1:{port}", f"Origin: {own}", "Origin: http://evil.example")
        assert told.status == 400
        assert behind.asked == 0


# -- Sec-Fetch-Site ---------------------------------------------------------------------------------------------------------


async def test_what_another_page_loads_without_an_origin_is_refused(tmp_path: Path) -> None:
    async with knocking(tmp_path) as behind:
        for site in ("cross-site", "same-site", "something-new", ""):
            for line in ROUTES:
                told = await behind.ask("Host: 127.0.0.1", f"Sec-Fetch-Site: {site}", line=line)
                assert told.status == 403, (site, line)
        two = ("Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site")
        assert (await behind.ask("Host: 127.0.0.1", *two)).status == 403
        own = f"Host: 127.0.0.1:{behind.served.port}", f"Origin: http://127.0.0.1:{behind.served.port}"
        assert (await behind.ask(*own, "Sec-Fetch-Site: cross-site")).status == 403
        assert behind.asked == 0


async def test_our_own_page_and_what_was_typed_are_let_through(tmp_path: Path) -> None:
    async with knocking(tmp_path) as behind:
        for site in ("same-origin", "none"):
            assert (await behind.ask("Host: 127.0.0.1", f"Sec-Fetch-Site: {site}")).status == 200


async def test_a_link_leads_to_the_page_and_to_nothing_else(tmp_path: Path) -> None:
    link = ("Host: 127.0.0.1", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document")
    frame = (*link[:3], "Sec-Fetch-Dest: iframe")
    async with knocking(tmp_path) as behind:
        assert (await behind.ask(*link, line="GET /?x=1 HTTP/1.1")).status in (200, 404)
        for line in (LOOK, ASK, "GET /api/session HTTP/1.1", "POST / HTTP/1.1", "GET // HTTP/1.1"):
            assert (await behind.ask(*link, line=line)).status == 403, line
        assert (await behind.ask(*frame, line="GET / HTTP/1.1")).status == 403
        assert behind.asked == 0


# -- other pages that may --------------------------------------------------------------------------------------------------


async def test_a_page_that_is_listed_may_ask_and_read_the_answer(tmp_path: Path) -> None:
    page = ("Host: 127.0.0.1", "Origin: https://page.example", "Sec-Fetch-Site: cross-site")
    async with knocking(tmp_path) as behind:
        told = await behind.ask(*page)
        assert told.status == 200
        assert told.headers["access-control-allow-origin"] == "https://page.example"
        assert "Origin" in told.headers["vary"]
        assert "access-control-allow-credentials" not in told.headers
        streamed = await behind.ask(*page, line=LOOK)
        assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert streamed.headers["access-control-allow-origin"] == "https://page.example"
        assert "X-Stream-Id" in streamed.headers["access-control-expose-headers"]
        refused = await behind.ask(*page, line="GET /nothing HTTP/1.1")
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (404, "https://page.example")


async def test_a_browser_is_told_beforehand_what_such_a_page_may_send(tmp_path: Path) -> None:
    asking = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x-api-key")
    line = "OPTIONS /api/chat/apollo HTTP/1.1"
    async with knocking(tmp_path) as behind:
        told = await behind.ask("Host: 127.0.0.1", "Origin: https://page.example", *asking, line=line)
        refused = await behind.ask("Host: 127.0.0.1", "Origin: https://evil.example", *asking, line=line)
        assert behind.asked == 0
    assert told.status == 204
    assert told.headers["access-control-allow-origin"] == "https://page.example"
    allowed = {name.strip().lower() for name in told.headers["access-control-allow-headers"].split(",")}
    assert {"authorization", "x-api-key", "content-type", "idempotency-key", "last-event-id"} <= allowed
    assert "DELETE" in told.headers["access-control-allow-methods"]
    assert (refused.status, "access-control-allow-origin" in refused.headers) == (403, False)


async def test_a_star_lets_nobody_in(tmp_path: Path) -> None:
    async with gateway(tmp_path, {"allowed_origins": ["*", "null"]}, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            for origin in ("https://page.example", "null", "*"):
                told = await served.raw(LOOK, "Host: 127.0.0.1", f"Origin: {origin}")
                assert told.status == 403


# -- behind a proxy --------------------------------------------------------------------------------------------------------


async def test_what_a_proxy_says_counts_only_where_there_is_one(tmp_path: Path) -> None:
    settings = {"allowed_hosts": ["chat.example"], "behind_proxy": True}
    asked = ("X-Forwarded-Host: chat.example", "X-Forwarded-Proto: https", "Origin: https://chat.example")
    line = "GET /api/session HTTP/1.1"
    async with gateway(tmp_path / "behind", settings, apollo=EchoBackend()) as served:
        served.key()
        with anyio.fail_after(5):
            assert (await served.raw(line, "Host: upstream", *asked)).status == 200
            assert (await served.raw(line, "Host: upstream", *asked[:2], "Origin: http://chat.example")).status == 403
            assert (await served.raw(line, "Host: upstream", "X-Forwarded-Host: evil.example")).status == 421
            assert (await served.raw(line, "Host: chat.example", "Origin: https://chat.example")).status == 200
            assert (await served.raw(line, "Host: 127.0.0.1", *asked, "X-Forwarded-Host: chat.example")).status == 400
    async with gateway(tmp_path / "alone", settings | {"behind_proxy": False}, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            assert (await served.raw(line, "Host: upstream", *asked)).status == 421
            assert (await served.raw(line, "Host: chat.example", *asked)).status == 403


# -- what every response says ----------------------------------------------------------------------------------------------


async def test_every_response_keeps_a_browser_from_guessing_and_telling(tmp_path: Path) -> None:
    async with knocking(tmp_path) as behind:
        for line in ROUTES:
            told = await behind.ask("Host: 127.0.0.1", line=line)
            assert told.headers["x-content-type-options"] == "nosniff"
            assert told.headers["referrer-policy"] == "no-referrer"
            assert told.headers["cross-origin-resource-policy"] == "same-origin"
            assert "no-store" in told.headers["cache-control"]
