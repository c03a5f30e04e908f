"""Plain text, for people with nc: what is one message, the commands, and what a terminal may see."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import pytest
from scripted import ScriptedBackend
from serving import serving, until

from daemon import paste
from daemon.backends import Piece
from protocol.errors import BackendDown


async def said(folder: Path, backend: ScriptedBackend, data: bytes, **changes: Any) -> bytes:
    """Everything that a client hears who sends this and half-closes."""
    async with serving(backend, folder, **changes) as served:
        client = await served.connect()
        client.send(data)
        client.end()
        with anyio.fail_after(5):
            return await client.rest()


async def test_a_line_is_answered_as_text_that_ends_with_a_newline(tmp_path: Path) -> None:
    assert await said(tmp_path, ScriptedBackend("Hel", "lo"), b"hi\n") == b"Hello\n"


async def test_an_answer_that_ends_with_a_newline_gets_no_second_one(tmp_path: Path) -> None:
    assert await said(tmp_path, ScriptedBackend("Hello\n"), b"hi\n") == b"Hello\n"


async def test_nobody_is_greeted(tmp_path: Path) -> None:
    assert await said(tmp_path, ScriptedBackend("x"), b"") == b""


async def test_an_answer_comes_token_by_token(tmp_path: Path) -> None:
    go = asyncio.Event()
    async with serving(ScriptedBackend("Hel", go, "lo"), tmp_path) as served:
        client = await served.connect()
        client.send(b"hi\n")
        with anyio.fail_after(5):
            assert await client.reader.readexactly(3) == b"Hel"
            go.set()
            assert await client.text() == "lo"


async def test_a_paste_with_blank_lines_is_one_question(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    await said(tmp_path, backend, b"\n\none\r\n\r\n\ttwo\n\n\nthree\n\n")
    assert backend.questions == ["one\n\n\ttwo\n\n\nthree"]


async def test_source_code_in_a_paste_is_part_of_it(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    code = "void f()\n{\n  {1, 2},\n{ return; }\n}"
    await said(tmp_path, backend, code.encode())
    assert backend.questions == [code]


async def test_a_json_object_in_a_paste_is_a_message_of_its_own(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    heard = await said(tmp_path, backend, b'one\n{"type": "ping", "request_id": 1}\ntwo\n')
    assert backend.questions == ["one", "two"]
    assert heard.count(b'\n{"type":"pong"') + heard.startswith(b'{"type":"pong"') == 1


async def test_a_pause_ends_a_message(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            for question in (b"one\n", b"two\n"):
                client.send(question)
                assert await client.text() == "x"
    assert backend.questions == ["one", "two"]


async def test_a_message_ends_a_while_after_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paste, "PASTE_LIMIT", 0.02)
    monkeypatch.setattr(paste, "PASTE_QUIET", 60.0)
    backend = ScriptedBackend("x")
    async with serving(backend, tmp_path, max_line_bytes=1_000_000_000) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            while not backend.prompts:
                client.send(b"more\n")
                await anyio.lowlevel.checkpoint()


async def test_a_line_that_is_still_coming_is_no_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paste, "PASTE_LIMIT", 60.0)
    monkeypatch.setattr(paste, "PASTE_QUIET", 0.5)
    backend = ScriptedBackend("x")
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        client.send(b"one\n")
        loop = asyncio.get_running_loop()
        until_then = loop.time() + 2 * paste.PASTE_QUIET
        with anyio.fail_after(5):
            while loop.time() < until_then:
                client.send(b".")
                await anyio.lowlevel.checkpoint()
            client.send(b"\n")
            client.end()
            await client.rest()
    assert len(backend.prompts) == 1


async def test_a_paste_over_the_line_limit_is_two_messages(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    await said(tmp_path, backend, (b"y" * 600 + b"\n") * 2, max_line_bytes=1024)
    assert [len(question) for question in backend.questions] == [600, 600]


async def test_invalid_utf8_is_replaced(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    await said(tmp_path, backend, b"caf\xe9\n")
    assert backend.questions == ["caf\ufffd"]


async def test_control_bytes_of_an_answer_are_harmless(tmp_path: Path) -> None:
    heard = await said(tmp_path, ScriptedBackend("a\x1b[2J\x07b\r\n\tc\x9b"), b"hi\n")
    assert heard.decode() == "a\ufffd[2J\ufffdb\n\tc\ufffd\n"


async def test_control_bytes_of_an_error_are_harmless(tmp_path: Path) -> None:
    heard = await said(tmp_path, ScriptedBackend(BackendDown("it said \x1b[2J")), b"hi\n")
    assert heard.decode() == "error: it said \ufffd[2J\n"


async def test_thinking_is_not_shown(tmp_path: Path) -> None:
    assert await said(tmp_path, ScriptedBackend(Piece(thinking="hm"), "x"), b"hi\n") == b"x\n"


async def test_an_error_is_a_line_of_its_own_behind_what_had_arrived(tmp_path: Path) -> None:
    heard = await said(tmp_path, ScriptedBackend("Hel", BackendDown("gone: start it")), b"hi\n")
    assert heard == b"Hel\nerror: gone: start it\n"


async def test_our_own_fault_is_a_line_of_text_with_a_trace_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard = await said(tmp_path, ScriptedBackend("Hel", ValueError("oops")), b"hi\n")
    first, error = heard.decode().splitlines()
    assert (first, error[:6]) == ("Hel", "error:")
    assert error.rsplit(" ", 1)[1] in caplog.text


async def test_an_error_in_the_middle_of_an_answer_begins_a_line(tmp_path: Path) -> None:
    go = asyncio.Event()
    async with serving(ScriptedBackend("Hel", go, "lo"), tmp_path, in_flight=1) as served:
        client = await served.connect()
        client.send(b"hi\n")
        with anyio.fail_after(5):
            await client.reader.readexactly(3)
            client.send(b"again\n")
            lines = [await client.text(), await client.text()]
            go.set()
            lines.append(await client.text())
    assert lines[1].startswith("error: 1 requests are under way")
    assert [lines[0], lines[2]] == ["", "lo"]


async def test_a_json_answer_in_the_middle_of_a_text_begins_a_line(tmp_path: Path) -> None:
    go = asyncio.Event()
    async with serving(ScriptedBackend("Hel", go, "lo"), tmp_path) as served:
        client = await served.connect()
        client.send(b"hi\n")
        with anyio.fail_after(5):
            await client.reader.readexactly(3)
            client.send({"type": "ping"})
            assert [await client.text(), (await client.text())[:14]] == ["", '{"type":"pong"']
            go.set()
            assert await client.text() == "lo"


async def test_one_connection_is_one_conversation(tmp_path: Path) -> None:
    backend = ScriptedBackend("Hello.")
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            for question in (b"one\n", b"two\n"):
                client.send(question)
                await client.text()
    assert [turn.content for turn in backend.prompts[1].turns] == ["one", "Hello.", "two"]


async def test_another_connection_is_another_conversation(tmp_path: Path) -> None:
    backend = ScriptedBackend("Hello.")
    async with serving(backend, tmp_path) as served:
        for question in (b"one\n", b"two\n"):
            client = await served.connect()
            client.send(question)
            with anyio.fail_after(5):
                await client.text()
    assert backend.questions == [prompt.turns[0].content for prompt in backend.prompts]


# -- commands -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (b"/help\n", b"/quit     close the connection"),
        (b"/help\r\n", b"/history  what was said"),
        (b"/info\n", b"model: scripted:1b (scripted)"),
        (b"/health please\n", b"model server: scripted ready"),
        (b"/history\n", b"nothing was said"),
        (b"/reset\n", b"forgot 0 turns"),
        (b"/nonsense\n", b"error: there is no /nonsense; the commands are:\n"),
        (b"/nonsense\n", b"/help     this list"),
    ],
)
async def test_a_command_is_answered_without_a_model(tmp_path: Path, command: bytes, answer: bytes) -> None:
    backend = ScriptedBackend("x")
    assert answer in await said(tmp_path, backend, command)
    assert backend.prompts == []


@pytest.mark.parametrize("text", [b"/etc/passwd is what?\n", b"/Help\n", b"/help\nme\n", b"/\n", b"a /help\n"])
async def test_what_only_looks_like_a_command_is_a_question(tmp_path: Path, text: bytes) -> None:
    backend = ScriptedBackend("x")
    assert await said(tmp_path, backend, text) == b"x\n"


async def test_quit_closes_after_what_is_under_way(tmp_path: Path) -> None:
    go = asyncio.Event()
    async with serving(ScriptedBackend("Hel", go, "lo"), tmp_path) as served:
        client = await served.connect()
        client.send(b"hi\n")
        with anyio.fail_after(5):
            await client.reader.readexactly(3)
            client.send(b"/quit\n")
            await until(lambda: served.specialist.queued)
            go.set()
            assert await client.rest() == b"lo\n"


async def test_history_and_reset_are_of_this_connection(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("Hello\x1b."), tmp_path) as served:
        client, other = await served.connect(), await served.connect()
        with anyio.fail_after(5):
            client.send(b"one\n")
            await client.text()
            other.send(b"/history\n")
            assert (await other.text()).startswith("nothing")
            client.send(b"/history\n")
            assert [(await client.text())[9:] for _ in range(2)] == ["you: one", "apollo: Hello\ufffd."]
            client.send(b"/reset\n")
            assert await client.text() == "forgot 2 turns"
            client.send(b"/history\n")
            assert (await client.text()).startswith("nothing")
