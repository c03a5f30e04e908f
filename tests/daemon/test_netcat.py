"""One-shot use with the four netcats as they are installed: each ends by itself, with the whole answer, without flags."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import anyio
import pytest
from scripted import ScriptedBackend
from serving import serving

from daemon.conversation import Kind

NETCATS = ["nc.openbsd", "nc.traditional", "ncat", "busybox nc"]
MESSAGES = [
    (b"Why?\n", Kind.PLAIN, b"Hello\n"),
    (b"Why?\n\nAnd how?\n", Kind.PLAIN, b"Hello\n"),
    (b'{"content": "Why?"\n', Kind.PLAIN, b'{"type":"error"'),
    (b'{"content": "Why?"}\n', Kind.UNTYPED, b'{"type":"chat_response"'),
    (b'{"type": "chat", "content": "Why?"}\n', Kind.TYPED, b'{"type":"chat_response"'),
    (b'{"type": "chat", "content": "Why?", "request_id": 1, "close": true}\n', None, b'{"type":"chat_response"'),
    (b"GET / HTTP/1.1\r\n\r\n", None, b"HTTP/1.1 400"),
    (b"Why?", Kind.PLAIN, b"Hello\n"),
]


@pytest.mark.parametrize("netcat", NETCATS)
@pytest.mark.parametrize(("message", "kind", "answer"), MESSAGES)
async def test_a_piped_message_is_answered_whole_and_then_closed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    netcat: str,
    message: bytes,
    kind: Kind | None,
    answer: bytes,
) -> None:
    program, *rest = netcat.split()
    if shutil.which(program) is None:
        print(reason := f"{program} is not installed")
        pytest.skip(reason)
    if not message.endswith(b"\n") and netcat in ("nc.openbsd", "nc.traditional"):
        pytest.skip(f"{netcat} never half-closes: without a newline the message has no end")
    if kind is not None:
        monkeypatch.setattr(kind, "_value_", 0.05)
    async with serving(ScriptedBackend("Hel", "lo"), tmp_path) as served:
        with anyio.fail_after(5):
            done = await anyio.run_process(
                [program, *rest, "127.0.0.1", str(served.port)], input=message, stderr=subprocess.STDOUT, check=False
            )
    assert done.stdout.startswith(answer)
    assert done.stdout.endswith(b"\n")
