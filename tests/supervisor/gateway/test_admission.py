"""Who is let in: keys, cookies, and those at home."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
import pytest
from aiohttp import web
from gatewaying import ServedGateway, gateway
from scripted import EchoBackend, ScriptedBackend
from serving import until

from supervisor.gateway import keys, uses
from supervisor.gateway.operation import Call, Operation

CHAT = "/api/chat/apollo"
PROXIED = {"behind_proxy": True, "allowed_hosts": ["chat.example"]}


async def restart(call: Call[None]) -> dict[str, str]:
    """A route that is for admins."""
    return {"by": call.owner}


ADMIN = Operation(method="POST", path="/api/test/admin", run=restart, tag="test", summary="", scope="admin")


@pytest.fixture(autouse=True)
def admin_route(monkeypatch: pytest.MonkeyPatch) -> None:
    from supervisor.gateway import app

    monkeypatch.setattr(app, "OPERATIONS", (*app.OPERATIONS, ADMIN))


async def status(served: ServedGateway, path: str = CHAT, key: str | None = None, **headers: str) -> int:
    """The status of a question, by X-API-Key where a key is given."""
    if key is not None:
        headers["X-API-Key"] = key
    told, _, _ = await served.request("POST", path, json={"message": "hi"}, headers=headers)
    return told


# -- at home ------------------------------------------------------------------------------------------------------------------


async def test_at_home_no_key_is_needed_and_one_that_is_sent_all_the_same_is_ignored(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            assert await status(served) == 200
            assert await status(served, key="sk-whatever") == 200
            assert await status(served, Authorization="Bearer unused") == 200
            assert await status(served, ADMIN.path) == 200


async def test_where_keys_exist_a_wrong_one_is_refused_and_none_is_still_enough_at_home(tmp_path: Path) -> None:
    backend = EchoBackend()
    async with gateway(tmp_path, apollo=backend) as served:
        _, text = served.key()
        with anyio.fail_after(5):
            assert await status(served) == 200
            assert await status(served, key=text) == 200
            for wrong in ("sk-whatever", text[:-1], text.upper(), "chorus_00000000_" + "0" * 64):
                assert await status(served, key=wrong) == 401
                assert await status(served, Authorization=f"Bearer {wrong}") == 401
    assert len(backend.prompts) == 2


async def test_a_key_that_was_ours_once_is_never_ignored(tmp_path: Path) -> None:
    """It was revoked for a reason, though nobody needs one here."""
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        key_id, text = served.key()
        served.revoke(key_id)
        with anyio.fail_after(5):
            assert await status(served, key="sk-whatever") == 200
            assert await status(served, key=text) == 401


async def test_a_name_that_is_not_of_loopback_is_not_home(tmp_path: Path) -> None:
    """Behind it is a proxy or a tunnel, and behind that is anybody."""
    backend = EchoBackend()
    async with gateway(tmp_path, {"allowed_hosts": ["chat.example"]}, apollo=backend) as served:
        with anyio.fail_after(5):
            assert await status(served, Host="chat.example") == 401
            assert backend.prompts == []
            _, text = served.key()
            assert await status(served, key=text, Host="chat.example") == 200


async def asked_as_nobody(served: ServedGateway, *headers: str, line: str = f"GET {CHAT}/stream?message=hi") -> int:
    """The status of a request by another user of this machine."""

    def ask() -> int:
        code = (
            "import encodings.idna, os, socket, sys; os.setuid(65534)\n"  # then no more imports: it may read nothing
            "link = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
            "link.sendall('\\r\\n'.join(sys.argv[2:]).encode())\n"
            "print(link.recv(100).split()[1].decode())"
        )
        head = [f"{line} HTTP/1.1", f"Host: 127.0.0.1:{served.port}", *headers, "", ""]
        words = [sys.executable, "-c", code, str(served.port), *head]
        return int(subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout)

    return await anyio.to_thread.run_sync(ask)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can ask as somebody else")
async def test_another_user_of_this_machine_needs_a_key(tmp_path: Path) -> None:
    backend = EchoBackend()
    async with gateway(tmp_path, apollo=backend) as served:
        with anyio.fail_after(30):
            assert await asked_as_nobody(served) == 401
            assert backend.prompts == []
            _, text = served.key()
            assert await asked_as_nobody(served, f"X-API-Key: {text}") == 200


@pytest.mark.skipif(os.getuid() != 0, reason="only root can ask as somebody else")
async def test_a_user_who_may_talk_to_the_team_may_chat_and_not_more(tmp_path: Path) -> None:
    """Over the wire such a user controls nothing, so neither here."""
    async with gateway(tmp_path, {"allowed_uids": [65534]}, apollo=EchoBackend()) as served:
        with anyio.fail_after(30):
            assert await asked_as_nobody(served) == 200
            assert await asked_as_nobody(served, "X-API-Key: sk-whatever") == 200
            assert await asked_as_nobody(served, line=f"POST {ADMIN.path}") == 403
            _, text = served.key("admin")
            assert await asked_as_nobody(served, f"X-API-Key: {text}", line=f"POST {ADMIN.path}") == 200


@pytest.mark.skipif(os.getuid() != 0, reason="only root can ask as somebody else")
async def test_a_cookie_that_another_user_of_this_machine_has_seen_is_of_no_use_to_him(tmp_path: Path) -> None:
    """A browser shows it to every server on this machine."""
    async with gateway(tmp_path, {"require_key": True}, apollo=EchoBackend()) as served:
        _, text = served.key()
        with anyio.fail_after(30):
            page = {"Cookie": await entered(served, text), "Origin": served.url}
            assert await status(served, **page) == 200
            assert await asked_as_nobody(served, *(f"{name}: {value}" for name, value in page.items())) == 401


async def test_a_key_may_be_asked_of_everybody(tmp_path: Path) -> None:
    async with gateway(tmp_path, {"require_key": True}, apollo=EchoBackend()) as served:
        _, text = served.key()
        with anyio.fail_after(5):
            assert await status(served) == 401
            assert await status(served, key=text) == 200


# -- keys -------------------------------------------------------------------------------------------------------------------


async def test_what_is_created_and_revoked_counts_at_once(tmp_path: Path) -> None:
    async with gateway(tmp_path, PROXIED, apollo=EchoBackend()) as served:
        with anyio.fail_after(5):
            served.key()
            for _ in range(3):
                key_id, text = served.key()
                assert await status(served, key=text) == 200
                served.revoke(key_id)
                assert await status(served, key=text) == 401


async def test_a_key_has_a_scope_and_an_end(tmp_path: Path) -> None:
    async with gateway(tmp_path, PROXIED, apollo=EchoBackend()) as served:
        chat, admin, over = served.key()[1], served.key("admin")[1], served.key("admin", expires=time.time() - 1)[1]
        with anyio.fail_after(5):
            assert [await status(served, key=one) for one in (chat, admin, over)] == [200, 200, 401]
            assert [await status(served, ADMIN.path, key=one) for one in (chat, admin, over)] == [403, 200, 401]
            assert await status(served, Authorization=f"bEARER  {chat} ") == 200
            assert await status(served, key=chat, Authorization="Basic cHJveHk6cHJveHk=") == 200
            assert await status(served, Authorization=f"Basic {chat}") == 401
            assert await status(served, key=chat, Authorization="Bearer of-the-proxy") == 200


async def test_two_keys_in_one_request_are_refused(tmp_path: Path) -> None:
    async with gateway(tmp_path, PROXIED, apollo=EchoBackend()) as served:
        _, text = served.key()
        with anyio.fail_after(5):
            for twice in (["X-API-Key: x", f"X-API-Key: {text}"], [f"Authorization: Bearer {text}"] * 2):
                told = await served.raw(f"GET {CHAT}/stream?message=hi HTTP/1.1", "Host: 127.0.0.1", *twice)
                assert told.status == 400


async def test_without_a_key_nothing_is_found_out(tmp_path: Path) -> None:
    async with gateway(tmp_path, PROXIED, apollo=EchoBackend()) as served:
        served.key()
        with anyio.fail_after(5):
            for method, path in (("GET", "/nothing"), ("POST", "/api/chat/nobody"), ("DELETE", "/api/stream/x")):
                told, problem, response = await served.request(method, path)
                assert (told, problem["code"]) == (401, "unauthorized")
                assert response.headers["WWW-Authenticate"].startswith("Bearer")


async def test_a_secret_in_a_url_does_not_work_anywhere(tmp_path: Path) -> None:
    backend = EchoBackend()
    async with gateway(tmp_path, apollo=backend) as served:
        _, text = served.key()
        with anyio.fail_after(5):
            for query in (f"api_key={text}", f"KEY={text}", "access_token=x", f"session_id=a{text}b", f"x={text[:-4]}"):
                for path in (f"{CHAT}/stream?message=hi&{query}", f"/api/session?{query}"):
                    told, problem, _ = await served.request("GET", path, headers={"X-API-Key": text})
                    assert told == 422
                    assert "chorus key revoke" in problem["error"]
                    assert text[:-4] not in problem["error"]
    assert backend.prompts == []


async def test_a_stream_belongs_to_the_key_that_began_it(tmp_path: Path) -> None:
    async with gateway(tmp_path, PROXIED, apollo=ScriptedBackend("Hel", "lo")) as served:
        (_, one), (_, other) = served.key(), served.key()
        with anyio.fail_after(5):
            mine = {"X-API-Key": one}
            async with served.events("POST", f"{CHAT}/stream", json={"message": "hi"}, headers=mine) as events:
                stream_id, seen = events.stream_id, await events.all()
            for path, method in ((f"/api/stream/events/{stream_id}", "GET"), (f"/api/stream/{stream_id}", "DELETE")):
                told, _, _ = await served.request(method, path, headers={"X-API-Key": other})
                assert told == 404
            told, _, _ = await served.request(
                "GET", f"{CHAT}/stream", headers={"X-API-Key": other, "Last-Event-ID": seen[0].id}
            )
            assert told == 404
            told, _, _ = await served.request("GET", f"/api/stream/status/{stream_id}", headers=mine)
            assert told == 200


async def test_the_last_use_of_a_key_is_kept(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        key_id, text = served.key()
        with anyio.fail_after(5):
            assert await status(served, key=text) == 200
            assert await status(served, key=text[:-1]) == 401
    assert list(uses.read(tmp_path / uses.FILE)) == [key_id]


# -- bound elsewhere ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"host": "0.0.0.0"}, {"host": "0.0.0.0", "require_key": True}, {"host": "192.168.1.5"}]
)
async def test_off_loopback_nobody_is_let_in_without_tls(tmp_path: Path, settings: dict[str, Any]) -> None:
    backend = EchoBackend()
    async with gateway(tmp_path, settings, apollo=backend) as served:
        _, text = served.key("admin")
        with anyio.fail_after(5):
            for path in (CHAT, "/api/session", "/nothing"):
                assert await status(served, path, key=text) == 503
            health = await served.get("/health")
            assert health["status"] == "degraded"
            assert "gateway.tls_certificate" in health["backend"]["error"]
    assert backend.prompts == []


async def test_where_everybody_needs_a_key_nobody_is_let_in_until_there_is_one(tmp_path: Path) -> None:
    backend = EchoBackend()
    async with gateway(tmp_path, {"host": "0.0.0.0", "behind_proxy": True}, apollo=backend) as served:
        with anyio.fail_after(5):
            told, problem, _ = await served.request("POST", CHAT, json={"message": "hi"})
            assert (told, problem["code"]) == (503, "unavailable")
            assert "chorus key create" in problem["error"]
            assert await status(served, key="chorus_00000000_" + "0" * 64) == 503
            assert backend.prompts == []
            _, text = served.key()
            assert served.house.admission.obstacle is None
            assert await status(served) == 401  # on this machine too
            assert await status(served, key=text) == 200


async def test_a_file_of_keys_that_cannot_be_read_opens_nothing(tmp_path: Path) -> None:
    async with gateway(tmp_path, PROXIED, apollo=EchoBackend()) as served:
        _, text = served.key()
        with anyio.fail_after(5):
            assert await status(served, key=text) == 200
            (tmp_path / keys.FILE).write_text("{")
            assert await status(served, key=text) == 503
            assert await status(served) == 401


# -- browsers -----------------------------------------------------------------------------------------------------------------


async def entered(served: ServedGateway, text: str) -> str:
    """The cookie that a page is given for a key."""
    told, entry, response = await served.request("POST", "/api/session", json={"key": text})
    assert told == 200, entry
    [(name, morsel)] = response.cookies.items()
    assert morsel["httponly"]
    assert (morsel["samesite"], morsel["path"], morsel["domain"]) == ("Strict", "/", "")
    assert 0 < int(morsel["max-age"]) <= 12 * 3600
    assert text not in morsel.value
    return f"{name}={morsel.value}"


async def test_a_page_has_a_cookie_for_its_key(tmp_path: Path) -> None:
    async with gateway(tmp_path, {"require_key": True}, apollo=EchoBackend()) as served:
        key_id, text = served.key()
        with anyio.fail_after(5):
            assert await served.get("/api/session") == {"scope": None, "key_id": None, "ends_at": None}
            cookie = await entered(served, text)
            page = {"Cookie": cookie, "Origin": served.url}
            assert await status(served, **page) == 200
            looking = {"Cookie": cookie, "Sec-Fetch-Site": "same-origin"}
            who = await served.get("/api/session", headers=looking)
            assert (who["scope"], who["key_id"]) == ("chat", key_id)
            async with served.events("GET", f"{CHAT}/stream?message=hi", headers=looking) as events:
                assert (await events.until("done"))[-1].name == "done"
            assert await status(served, ADMIN.path, **page) == 403
            served.revoke(key_id)
            served.key()
            assert await status(served, **page) == 401


async def test_a_cookie_counts_only_for_our_own_page(tmp_path: Path) -> None:
    """A browser sends it to every port of localhost, and with whatever a page there asks."""
    backend = EchoBackend()
    settings = {"require_key": True, "allowed_origins": ["http://127.0.0.1:3000"]}
    async with gateway(tmp_path, settings, apollo=backend) as served:
        _, text = served.key()
        with anyio.fail_after(5):
            cookie = await entered(served, text)
            assert await status(served, Cookie=cookie) == 401  # who says neither is no browser
            assert await status(served, Cookie=cookie, Origin="http://127.0.0.1:3000") == 401
            assert await status(served, Cookie=cookie, Origin="http://127.0.0.1:3001") == 403
            told, _, _ = await served.request(
                "GET", f"{CHAT}/stream?message=hi", headers={"Cookie": cookie, "Sec-Fetch-Site": "none"}
            )
            assert told == 401
    assert backend.prompts == []


async def test_only_a_key_buys_a_cookie_and_a_page_can_give_it_back(tmp_path: Path) -> None:
    async with gateway(tmp_path, {"require_key": True}, apollo=EchoBackend()) as served:
        served.key()
        with anyio.fail_after(5):
            for wrong in ("", "sk-whatever", "chorus_00000000_" + "0" * 64):
                told, _, response = await served.request("POST", "/api/session", json={"key": wrong})
                assert told == 401
                assert not response.cookies
            _, _, response = await served.request("DELETE", "/api/session")
            [morsel] = response.cookies.values()
            assert (morsel.value, morsel["max-age"]) == ("", "0")


async def test_by_tls_a_cookie_is_for_tls_alone(tmp_path: Path) -> None:
    async with gateway(tmp_path, PROXIED, apollo=EchoBackend()) as served:
        _, text = served.key()
        with anyio.fail_after(5):
            _, _, response = await served.request(
                "POST", "/api/session", json={"key": text}, headers={"X-Forwarded-Proto": "https"}
            )
            [(name, morsel)] = response.cookies.items()
            assert name.startswith("__Host-")
            assert morsel["secure"]
            page = {"Cookie": f"{name}={morsel.value}", "Sec-Fetch-Site": "same-origin"}
            assert await status(served, **page, **{"X-Forwarded-Proto": "https"}) == 200
            assert await status(served, **page, **{"X-Forwarded-Proto": "http"}) == 401


async def test_a_caller_who_has_left_is_nobodys_problem(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = ScriptedBackend("Hel", asyncio.Event())
    async with gateway(tmp_path, apollo=backend) as served:
        with anyio.fail_after(5):
            for _ in range(20):
                _, writer = await asyncio.open_connection("127.0.0.1", served.port)
                writer.write(b"GET /api/chat/apollo/stream?message=hi HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                writer.transport.abort()
            await until(lambda: backend.under_way == 0 and not served.house.streams.under_way)
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


async def test_a_websocket_needs_a_key_where_everything_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(call: Call[None]) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(call.request)
        await socket.send_str(json.dumps({"owner": call.owner}))
        await socket.close()
        return socket

    from supervisor.gateway import app

    route = Operation(method="GET", path="/api/test/ws", run=talk, tag="test", summary="")
    monkeypatch.setattr(app, "OPERATIONS", (*app.OPERATIONS, route))
    async with gateway(tmp_path, {"require_key": True}, apollo=EchoBackend()) as served:
        key_id, text = served.key()
        with anyio.fail_after(5):
            cookie = await entered(served, text)
            for refused, code in (({}, 401), ({"Cookie": cookie}, 401), ({"Origin": "http://evil.example"}, 403)):
                with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                    await served.session.ws_connect(served.url + route.path, headers=refused)
                assert error.value.status == code
            for taken in ({"X-API-Key": text}, {"Cookie": cookie, "Origin": served.url}):
                async with served.session.ws_connect(served.url + route.path, headers=taken) as socket:
                    assert (await socket.receive_json()) == {"owner": key_id}
