"""Host and Origin, read strictly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.gateway.origin import Authority, Origin, is_address, of_setting, read_authority, read_origin


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1", "127.0.0.1", None),
        ("127.0.0.1:8003", "127.0.0.1", 8003),
        ("LocalHost:80", "localhost", 80),
        ("[::1]:8003", "[::1]", 8003),
        ("[0:0:0:0:0:0:0:1]", "[::1]", None),
        ("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", None),
        ("box.example.org", "box.example.org", None),
        ("my_box", "my_box", None),
    ],
)
def test_a_host_is_read_in_one_spelling(text: str, host: str, port: int | None) -> None:
    assert read_authority(text) == Authority(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost.",
        "127.0.0.1.",
        "127.0.0.1@evil.example",
        "evil.example@127.0.0.1",
        "127.0.0.1:8003@evil.example",
        "127.0.0.1, evil.example",
        "127.0.0.1 evil.example",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:999999",
        "127.0.0.1:8003:8003",
        "127.0.0.1/",
        "127.0.0.1#",
        "127.0.0.1\\evil",
        "127.1",
        "0x7f.0.0.1",
        "0x7f000001",
        "2130706433",
        "127.0.0.01",
        "١٢٧.٠.٠.١",
        "127。0。0。1",
        "ⓛocalhost",
        "loca\u017fhost",  # which some lowercase to localhost
        "[::1",
        "::1",
        "[::1%25lo]",
        "[fe80::1%lo]",
        "[127.0.0.1]",
        "[::1]evil",
        "-",
        "..",
        "localhost..",
    ],
)
def test_what_is_written_otherwise_is_nobodys_name(text: str) -> None:
    found = read_authority(text)
    assert found is None or found.host not in {"localhost", "127.0.0.1", "[::1]"}
    assert found is None or text == "-"


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://127.0.0.1:8003", Origin("http", "127.0.0.1", 8003)),
        ("http://localhost", Origin("http", "localhost", 80)),
        ("http://localhost:80", Origin("http", "localhost", 80)),
        ("HTTPS://Box.Example.ORG", Origin("https", "box.example.org", 443)),
        ("http://[::1]:8003", Origin("http", "[::1]", 8003)),
        ("chrome-extension://abcdef", Origin("chrome-extension", "abcdef", 0)),
    ],
)
def test_an_origin_is_read_with_its_usual_port(text: str, origin: Origin) -> None:
    assert read_origin(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "",
        "localhost",
        "http://",
        "http:localhost",
        "//localhost",
        "http://localhost/",
        "http://user@localhost",
        "http://user:pass@localhost:8003",
        "http://localhost:8003 http://evil.example",
        "http://localhost:٨٠٠٣",
        "file://",
        "http://localhost:123456",
    ],
)
def test_what_is_no_origin_is_none(text: str) -> None:
    assert read_origin(text) is None


@given(st.text(max_size=40))
def test_nothing_but_its_own_spellings_is_read_as_localhost(text: str) -> None:
    found = read_authority(text)
    if found is not None and found.host == "localhost":
        assert text.isascii()
        assert text.lower().partition(":")[0] == "localhost"


def test_addresses_are_told_from_names() -> None:
    assert is_address("10.0.0.1")
    assert is_address("[::1]")
    assert not is_address("ten.example.org")


@pytest.mark.parametrize(
    ("setting", "host"),
    [("::1", "[::1]"), ("[::1]", "[::1]"), ("Box.example.org", "box.example.org"), ("10.0.0.1",) * 2],
)
def test_a_host_of_the_configuration_has_the_same_spelling(setting: str, host: str) -> None:
    assert of_setting(setting) == host
