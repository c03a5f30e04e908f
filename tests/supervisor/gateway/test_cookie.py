"""The cookie in place of a key."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from supervisor.gateway import cookie, keys
from supervisor.gateway.cookie import Cookies
from supervisor.gateway.keys import Key, Keys


@pytest.fixture
def known(tmp_path: Path) -> Keys:
    return Keys(tmp_path / keys.FILE)


def made(tmp_path: Path, expires: float | None = None) -> Key:
    key, _ = keys.make("chat", expires=expires)
    keys.add(tmp_path / keys.FILE, key)
    return key


def test_a_cookie_stands_for_its_key_in_the_next_process_too(tmp_path: Path, known: Keys) -> None:
    path = tmp_path / cookie.FILE
    key = made(tmp_path)
    value, ends = Cookies(path).value(key)
    assert Cookies(path).key_of(value, known) == key
    assert 0 < ends - time.time() <= cookie.LIVES
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_cookie_ends_with_its_key(tmp_path: Path, known: Keys) -> None:
    cookies = Cookies(tmp_path / cookie.FILE)
    soon = made(tmp_path, expires=time.time() + 100)
    value, ends = cookies.value(soon)
    assert ends <= time.time() + 100
    keys.remove(tmp_path / keys.FILE, soon.id)
    assert cookies.key_of(value, known) is None


def test_another_key_of_the_same_id_is_not_meant(tmp_path: Path, known: Keys) -> None:
    cookies = Cookies(tmp_path / cookie.FILE)
    key = made(tmp_path)
    value, _ = cookies.value(key)
    keys.remove(tmp_path / keys.FILE, key.id)
    other, _ = keys.make("admin")
    keys.add(tmp_path / keys.FILE, Key(id=key.id, digest=other.digest, scope="admin", created=0.0))
    assert cookies.key_of(value, known) is None


def test_what_was_changed_is_no_cookie(tmp_path: Path, known: Keys) -> None:
    cookies = Cookies(tmp_path / cookie.FILE)
    key = made(tmp_path)
    value, ends = cookies.value(key)
    signed = value.rpartition(".")[2]
    for wrong in (
        "",
        ".",
        "..",
        value[:-1],
        value + "0",
        f"{key.id}.{int(ends) + 1}.{signed}",
        f"{key.id}.{'9' * 400}.{signed}",
        f"{key.id}.١٢٣.{signed}",
        f"{key.id}.-1.{signed}",
        f"{key.id}.{int(ends)}.{'é' * 64}",
        value.upper(),
    ):
        assert cookies.key_of(wrong, known) is None, wrong


def test_a_cookie_of_yesterday_is_over(tmp_path: Path, known: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    cookies = Cookies(tmp_path / cookie.FILE)
    value, ends = cookies.value(made(tmp_path))
    monkeypatch.setattr(time, "time", lambda: ends)
    assert cookies.key_of(value, known) is None


def test_a_leaked_file_of_keys_makes_no_cookie(tmp_path: Path, known: Keys) -> None:
    """It has the digests that are signed, and not the secret that signs."""
    key = made(tmp_path)
    value, _ = Cookies(tmp_path / "elsewhere" / cookie.FILE).value(key)
    assert Cookies(tmp_path / cookie.FILE).key_of(value, known) is None


def test_two_installations_have_two_names(tmp_path: Path) -> None:
    one, other = Cookies(tmp_path / "a" / cookie.FILE), Cookies(tmp_path / "b" / cookie.FILE)
    assert one.name(secure=False) != other.name(secure=False)
    assert one.name(secure=True) == "__Host-" + one.name(secure=False)


def test_where_nothing_can_be_kept_there_are_cookies_all_the_same(tmp_path: Path, known: Keys) -> None:
    (tmp_path / "file").touch()
    cookies = Cookies(tmp_path / "file" / cookie.FILE)
    key = made(tmp_path)
    value, _ = cookies.value(key)
    assert cookies.key_of(value, known) == key
