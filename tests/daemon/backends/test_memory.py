"""What is remembered of the model server."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from daemon.backends.memory import Memory, Remembered


def test_nothing_is_remembered_at_first(tmp_path: Path) -> None:
    assert Memory(str(tmp_path)).read() == Remembered()


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    Memory(str(tmp_path / "new" / "folder")).write(Remembered("http://x", "llama3.2", seen=True))
    memory = Memory(str(tmp_path / "new" / "folder"))
    assert memory.read().seen
    assert memory.model_at("http://x") == "llama3.2"
    assert memory.model_at("http://y") is None


def test_the_file_is_the_documented_one(tmp_path: Path) -> None:
    Memory(str(tmp_path)).write(Remembered("http://x", "llama3.2", seen=True))
    read = json.loads((tmp_path / "backend.json").read_bytes())
    assert read == {"url": "http://x", "model": "llama3.2", "seen": True}


def test_a_file_of_nonsense_is_as_good_as_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "backend.json").write_bytes(b'{"url": 3')
    assert Memory(str(tmp_path)).read() == Remembered()
    assert "cannot be read" in caplog.text


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    Memory(str(tmp_path / "file")).write(Remembered(seen=True))
    assert "cannot be written" in caplog.text


def test_many_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    def write(model: str) -> None:
        for _ in range(20):
            Memory(str(tmp_path)).write(Remembered("http://x", model, seen=True))

    writers = [threading.Thread(target=write, args=(f"m{number}" * 50,)) for number in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert Memory(str(tmp_path)).read().url in ("", "http://x")
    assert [path.name for path in tmp_path.iterdir()] == ["backend.json"]
