"""Keys as they are kept: made, found, revoked, and what a leaked or broken file is worth."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path

import pytest

from protocol.errors import Unavailable
from supervisor.gateway import keys, uses
from supervisor.gateway.keys import Keys
from supervisor.gateway.uses import Uses


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / keys.FILE


def test_a_key_is_found_by_its_text_alone(path: Path) -> None:
    key, text = keys.make("chat", "laptop")
    keys.add(path, key)
    known = Keys(path)
    assert known.find(text) == key
    other = "0" if text[-1] != "0" else "1"
    for wrong in (
        text[:-1],
        text[:-1] + other,
        text + "0",
        text.upper(),
        f" {text}",
        key.id,
        key.digest,
        "",
        "chorus_",
    ):
        assert known.find(wrong) is None


def test_the_file_holds_no_text_and_is_for_us_alone(path: Path) -> None:
    key, text = keys.make("admin")
    keys.add(path, key)
    assert text.rpartition("_")[2] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_was_made_counts_at_once_and_what_was_revoked_does_not(path: Path) -> None:
    known = Keys(path)
    assert not known.exist
    made = [keys.make("chat") for _ in range(3)]
    for key, text in made:
        keys.add(path, key)
        assert known.find(text) == key
    for key, text in made:
        assert keys.remove(path, key.id) == key
        assert known.find(text) is None
    assert not known.exist
    assert keys.remove(path, made[0][0].id) is None


def test_a_key_ends_when_it_was_said_to(path: Path) -> None:
    key, text = keys.make("chat", expires=time.time() - 1)
    keys.add(path, key)
    known = Keys(path)
    assert known.exist
    assert known.find(text) is None
    assert known.of_id(key.id) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version":1,"keys":[{"id":3}]}', b"\xff"])
def test_a_file_that_cannot_be_read_lets_nobody_in(
    path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    key, text = keys.make("chat")
    keys.add(path, key)
    known = Keys(path)
    assert known.find(text) == key
    path.write_bytes(content)
    assert known.exist
    for _ in range(2):
        with pytest.raises(Unavailable, match="cannot be read"):
            known.find(text)
    assert known.of_id(key.id) is None
    assert len([one for one in caplog.records if one.levelno == logging.ERROR]) == 1


def test_keys_made_at_the_same_time_are_all_kept(path: Path) -> None:
    made = [keys.make("chat")[0] for _ in range(12)]
    threads = [threading.Thread(target=keys.add, args=(path, key)) for key in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.id for one in keys.read(path)} == {one.id for one in made}
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_full_disk_leaves_the_keys_as_they_were(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, text = keys.make("chat")
    keys.add(path, key)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        keys.add(path, keys.make("chat")[0])
    assert Keys(path).find(text) == key
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_uses_are_kept_to_the_minute_and_the_later_of_two_gateways_counts(tmp_path: Path) -> None:
    path = tmp_path / "state" / uses.FILE
    assert uses.read(path) == {}
    one, other = Uses(path), Uses(path)
    one.note("aa")
    other.note("bb")
    other.write()
    one.write()
    told = uses.read(path)
    assert set(told) == {"aa", "bb"}
    assert all(at % 60 == 0 and 0 <= time.time() - at < 120 for at in told.values())
    later = {"aa": time.time() + 3600}
    path.write_text(json.dumps(later))
    one.note("aa")
    one.write()
    assert uses.read(path) == later
