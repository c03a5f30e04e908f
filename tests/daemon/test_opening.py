"""First bytes: a web page must not be able to talk to a port on localhost."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from scripted import ScriptedBackend
from serving import serving

from daemon.opening import begins_http, is_http, is_tls

BODY = b'{"content": "delete everything", "close": true}\n'


@pytest.mark.parametrize(
    "line",
    [
        b"POST / HTTP/1.1",
        b"GET /a?b=c HTTP/1.0\r",
        b"options * HTTP/1.1",
        b"CONNECT localhost:45003 HTTP/1.1",
        b"GET http://localhost:45003/ HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"BREW /pot HTTP/1.1",
    ],
)
def test_a_request_line_is_http(line: bytes) -> None:
    assert is_http(line)


@pytest.mark.parametrize(
    "line",
    [
        b"explain HTTP/1.1",
        b"what is GET / HTTP/1.1 ?",
        b"GET /",
        b"POST / HTTP/1.1 means what?",
        b"",
        b'{"content": "x"}',
    ],
)
def test_what_a_person_writes_is_not_http(line: bytes) -> None:
    assert not is_http(line)


@pytest.mark.parametrize(
    ("start", "may_be"),
    [
        (b"POST /" + b"a" * 58, True),
        (b"GET http://x/" + b"a" * 51, True),
        (b"Why " + b"a" * 60, False),
        (b"a" * 64, False),
    ],
)
def test_a_request_line_is_told_by_its_start(start: bytes, may_be: bool) -> None:
    assert begins_http(start) is may_be


def test_one_byte_tells_tls() -> None:
    assert [is_tls(data) for data in (b"\x16", b"\x16\x03\x01", b"\x16x", b"")] == [True, True, False, False]


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n\r\n",
        b"\r\nPOST / HTTP/1.1\r\n\r\n",
        b"POST /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["plain", "blank line first", "url over the line limit"],
)
@pytest.mark.parametrize("cut", [None, 3, 1500])
async def test_a_page_that_posts_a_json_line_reaches_no_model(tmp_path: Path, head: bytes, cut: int | None) -> None:
    backend = ScriptedBackend("x")
    async with serving(backend, tmp_path, max_line_bytes=1024) as served:
        client = await served.connect()
        for part in [head + BODY] if cut is None else [head[:cut], head[cut:] + BODY, BODY]:
            client.send(part)
            await anyio.lowlevel.checkpoint()
        with anyio.fail_after(5):
            heard = await client.rest()
    assert backend.prompts == []
    assert heard.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert heard.count(b"HTTP/1.1") == 1


async def test_a_request_line_later_on_is_text(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send(b"what is this?\nPOST / HTTP/1.1\n")
        with anyio.fail_after(5):
            assert await client.text() == "x"


async def test_curl_is_told_where_to_go(tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl here")
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        with anyio.fail_after(5):
            url = f"http://127.0.0.1:{served.port}/"
            done = await anyio.run_process([curl, "-s", "-w", "%{http_code}", "-d", "x=1", url])
    assert done.stdout.endswith(b"400")
    assert b"which speaks newline-delimited JSON or plain text, not HTTP" in done.stdout
    assert f"nc localhost {served.port}".encode() in done.stdout


async def test_a_tls_client_gets_an_alert(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    context = ssl.create_default_context()
    async with serving(backend, tmp_path) as served:
        with anyio.fail_after(5), pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
            await anyio.connect_tcp("127.0.0.1", served.port, tls=True, ssl_context=context)
    assert backend.prompts == []


async def test_a_tls_hello_in_single_bytes_gets_an_alert(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        client.send(b"\x16")
        with anyio.fail_after(5):
            assert await client.rest() == b"\x15\x03\x01\x00\x02\x02\x46"
