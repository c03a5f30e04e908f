"""What a configuration comes to, layer over layer, and what is said of a wrong one."""

from __future__ import annotations

import os
import pwd
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certifying import certified

from protocol import names
from protocol.errors import NotFound
from supervisor import config, locate, places, roster
from supervisor.config import ConfigError, Loaded, load, ollama_url, resolve, supervision, team

Load = Callable[..., Loaded]


@pytest.fixture(autouse=True)
def no_system_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "SYSTEM_FILE", tmp_path / "etc/chorus.toml")


def loaded_with(home: Path, text: str = "", flags: dict[str, Any] | None = None, **environ: str) -> Loaded:
    file = None
    if text:
        file = home / "given.toml"
        file.write_text(text)
    return load(flags or {}, file, {"HOME": str(home), **environ})


def mistakes(home: Path, text: str = "", flags: dict[str, Any] | None = None, **environ: str) -> list[str]:
    """What is said of a wrong configuration, without the folder of the file."""
    with pytest.raises(ConfigError) as caught:
        loaded_with(home, text, flags, **environ)
    assert str(caught.value) == "\n".join(caught.value.mistakes)
    return [line.replace(f"{home}/given.toml", "given.toml") for line in caught.value.mistakes]


# -- layers --------------------------------------------------------------------------------------------------


def test_no_file_is_needed(tmp_path: Path) -> None:
    loaded = loaded_with(tmp_path)
    assert loaded.settings.port_base == 45000
    assert loaded.origins["port_base"] == "default"
    assert loaded.files == []


def test_each_layer_covers_the_one_below(tmp_path: Path) -> None:
    system, user, given = (
        tmp_path / "etc/chorus.toml",
        tmp_path / ".config/chorus/config.toml",
        tmp_path / "given",
    )
    for number, file in enumerate((system, user, given), start=1):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"port_base = {number}0000\n")
    environ = {"HOME": str(tmp_path)}
    found = [load({}, None, environ)]
    found.append(load({}, given, environ))
    found.append(load({}, given, environ | {"CHORUS_PORT_BASE": "40000"}))
    found.append(load({"port_base": 50000}, given, environ | {"CHORUS_PORT_BASE": "40000"}))
    assert [one.settings.port_base for one in found] == [20000, 30000, 40000, 50000]
    origins = [one.origins["port_base"] for one in found]
    assert origins == [f"{user}:1", f"{given}:1", "CHORUS_PORT_BASE", "--port-base"]
    assert found[1].files == [system, user, given]


def test_tables_merge_and_lists_replace(tmp_path: Path) -> None:
    user = tmp_path / ".config/chorus/config.toml"
    user.parent.mkdir(parents=True)
    user.write_text('roster = ["apollo", "athena"]\n[backend.options]\nseed = 1\ntop_k = 5\n')
    loaded = loaded_with(tmp_path, 'roster = ["numa"]\n[backend.options]\ntop_k = 9\n')
    assert loaded.settings.roster == ["numa"]
    assert loaded.settings.backend.options == {"seed": 1, "top_k": 9}
    assert loaded.origins["backend.options.seed"] == f"{user}:3"


def test_the_variable_names_the_file_and_the_flag_wins(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("port_base = 1111\n")
    (tmp_path / "b").write_text("port_base = 2222\n")
    environ = {"HOME": str(tmp_path), "CHORUS_CONFIG": str(tmp_path / "a")}
    assert load({}, None, environ).settings.port_base == 1111
    assert load({}, tmp_path / "b", environ).settings.port_base == 2222


def test_every_variable_has_its_key(tmp_path: Path) -> None:
    settings = loaded_with(
        tmp_path,
        CHORUS_PORT_BASE="47000",
        CHORUS_ROSTER="apollo, Athena-AI,,tekton",
        CHORUS_BACKEND="ollama",
        CHORUS_BACKEND_URL="http://box:1/",
        CHORUS_MODEL="m",
        CHORUS_GATEWAY="false",
        CHORUS_GATEWAY_PORT="9000",
    ).settings
    assert settings.port_base == 47000
    assert (settings.gateway.enabled, settings.gateway.port) == (False, 9000)
    assert settings.roster == ["apollo", "athena", "tekton_core"]
    assert (settings.backend.kind, settings.backend.url, settings.backend.model) == (
        "ollama",
        "http://box:1",
        "m",
    )


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    empty = dict.fromkeys([*config.VARIABLES, "CHORUS_CONFIG", "CHORUS_SOCKET", "OLLAMA_HOST", "XDG_STATE_HOME"], "")
    assert loaded_with(tmp_path, "", None, **empty) == loaded_with(tmp_path)


def test_flags_that_were_not_given_say_nothing(tmp_path: Path) -> None:
    flags = {"port_base": None, "backend.kind": "builtin", "roster": ("numa", "metis")}
    loaded = loaded_with(tmp_path, "", flags)
    assert loaded.origins["backend.kind"] == "--backend"
    assert (loaded.settings.port_base, loaded.settings.roster) == (45000, ["numa", "metis"])


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert loaded_with(tmp_path, "\ufeffport_base = 3000\r\n").settings.port_base == 3000


# -- the model server ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("box", "http://box:11434"),
        ("box:1", "http://box:1"),
        (":1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:1", "http://127.0.0.1:1"),
        ("http://box", "http://box:80"),
        ("https://box/", "https://box:443"),
        ("http://0.0.0.0:1/path/", "http://127.0.0.1:1/path"),
        ("[::1]:1", "http://[::1]:1"),
        ("[::]:1", "http://[::1]:1"),
        ("::1", "http://[::1]:11434"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(text: str, url: str) -> None:
    assert ollama_url(text) == url


def test_ollama_host_stands_over_files_and_under_our_own_variable(tmp_path: Path) -> None:
    text = '[backend]\nurl = "http://file:1"\n'
    over = loaded_with(tmp_path, text, OLLAMA_HOST='"box"')
    assert (over.url, over.origins["backend.url"]) == ("http://box:11434", "OLLAMA_HOST")
    assert over.url_asked_for
    assert loaded_with(tmp_path, text, OLLAMA_HOST="box", CHORUS_BACKEND_URL="http://ours:1").url == "http://ours:1"


def test_ollama_host_says_nothing_of_another_kind_of_server(tmp_path: Path) -> None:
    """Or its key would be sent to whatever listens at OLLAMA_HOST."""
    text = '[backend]\nkind = "openai_compatible"\nurl = "https://api.example/v1"\n'
    assert loaded_with(tmp_path, text, OLLAMA_HOST="box").url == "https://api.example/v1"


def test_nobody_asked_for_the_default_model_server(tmp_path: Path) -> None:
    loaded = loaded_with(tmp_path)
    assert (loaded.url, loaded.url_asked_for) == ("http://127.0.0.1:11434", False)


def test_the_key_file_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    text = 'roster = ["numa"]\n[backend]\nkind = "openai_compatible"\napi_key_file = "key"\n'
    assert team(loaded_with(tmp_path, text))[0].api_key == "secret"
    assert mistakes(tmp_path, text.replace('"key"', '"gone"')) == [
        f"given.toml:4: backend.api_key_file: cannot read {tmp_path}/gone: no such file or directory"
    ]
    (tmp_path / "key").write_text("")
    assert "expected one key" in mistakes(tmp_path, text)[0]


# -- mistakes ------------------------------------------------------------------------------------------------


def test_mistakes_of_different_kinds_are_all_reported_at_once(tmp_path: Path) -> None:
    text = """\
prot_base = 1
roster = [
  "athena",
  "apolo",
]
[specialists.apollo]
# a comment
port = "abc"
modle = "x"
[limits]
silence = 0
"""
    new = "(a new one needs a table [specialists.apolo])"
    assert mistakes(tmp_path, text) == [
        'given.toml:1: prot_base: unknown key - did you mean "port_base"?',
        f'given.toml:4: roster: no specialist "apolo" - did you mean "apollo"? {new}',
        'given.toml:8: specialists.apollo.port: expected an integer 1-65535, got "abc"',
        'given.toml:9: specialists.apollo.modle: unknown key - did you mean "model"?',
        "given.toml:11: limits.silence: expected a number above 0, got 0",
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("model = 'x'", '1: model: unknown key - did you mean "backend.model"?'),
        ("[backend]\nport_base = 1", '2: backend.port_base: unknown key - did you mean "port_base"?'),
        ("[history]\nxyzzy = 1", "2: history.xyzzy: unknown key - there is retention_days"),
        ("backend = 3", "1: backend: expected a table, got 3"),
        ("specialists = []", "1: specialists: expected a table, got []"),
        ("specialists.apollo = 1", "1: specialists.apollo: expected a table, got 1"),
        ("[gateway]\nenabled = 1", "2: gateway.enabled: expected true or false, got 1"),
        (
            "[gateway]\nalso_ports = [0]",
            "2: gateway.also_ports: expected a list of at most 8 integers 1-65535, got [0]",
        ),
        (
            "[gateway]\nhost = 'box.example.org'",
            '2: gateway.host: expected an address such as 127.0.0.1 or 0.0.0.0, or localhost, got "box.example.org"',
        ),
        (
            "[gateway]\nallowed_origins = ['https://example.org/']",
            (
                "2: gateway.allowed_origins: expected an origin such as https://example.org, or with its port, "
                'got "https://example.org/"'
            ),
        ),
        (
            "[gateway]\nallowed_hosts = ['*.example.org']",
            (
                "2: gateway.allowed_hosts: expected a name such as box.example.org, without scheme and port, "
                'got "*.example.org"'
            ),
        ),
        (
            "[gateway]\ntls_key = 'key.pem'",
            "2: gateway.tls_key: expected tls_certificate beside it: TLS takes both",
        ),
        ("[gateway]\nmax_body_bytes = 0", "2: gateway.max_body_bytes: expected an integer of at least 1024, got 0"),
        (
            "[gateway]\nengram_url = 'box'",
            '2: gateway.engram_url: expected a URL such as http://127.0.0.1:11434, got "box"',
        ),
        ("roster = 'numa'", '1: roster: expected a list of strings, got "numa"'),
        ("[cache]\nsimilarity = 2", "2: cache.similarity: expected a number 0-1, got 2"),
        ("[limits]\nin_flight = true", "2: limits.in_flight: expected an integer of at least 1, got true"),
        ("[limits]\nsilence = inf", "2: limits.silence: expected a number above 0, got inf"),
        (
            "[supervision]\nrestart = 'often'",
            '2: supervision.restart: expected one of "always", "never", "on_failure", got "often"',
        ),
        (
            "[backend.options]\nx = 07:00:00",
            "2: backend.options.x: expected a number, a string, true, false or a list of them, got 07:00:00",
        ),
        (
            "[backend]\nurl = 'box'",
            '2: backend.url: expected a URL such as http://127.0.0.1:11434, got "box"',
        ),
        (
            "[specialists.apollo]\nport = 45005",
            "2: specialists.apollo.port: expected a port of its own, got 45005, which is athena's",
        ),
        (
            "[specialists.apollo]\nport = 8003",
            "2: specialists.apollo.port: expected a port of its own, got 8003, which is the gateway's",
        ),
        (
            "[gateway]\nport = 45005",
            "2: gateway.port: expected a port of its own, got 45005, which is athena's",
        ),
        ("port_base = 8000", "1: port_base: expected a port of its own, got 8003, which is the gateway's"),
        (
            "[specialists.apollo]\nport = 99\n[specialists.numa]\nport = 99",
            "4: specialists.numa.port: expected a port of its own, got 99, which is apollo's",
        ),
        (
            "[specialists.numa.options]\nnum_ctx = 1",
            (
                "2: specialists.numa.options.num_ctx: belongs to [backend.options]: "
                "the model would be loaded anew for each specialist"
            ),
        ),
        (
            "roster = ['tekton', 'tekton-core']",
            '1: roster: "tekton-core" is tekton_core, who is there already',
        ),
        (
            "[specialists.budget]\n[specialists.penia]",
            '2: specialists.penia: "penia" is penia, who is there already',
        ),
        ("roster = []", "1: roster: expected at least one name, got []"),
        (
            "[specialists.apolo]\nport = 1",
            '1: specialists.apolo: no specialist of that name - did you mean "apollo"?',
        ),
        ("[roles]\nx = 'apolo'", '2: roles.x: no specialist "apolo" - did you mean "apollo"?'),
        ("[roles]\nx = 'zeus'", '2: roles.x: no specialist "zeus" - it is not in the roster'),
        ("allow_users = ['no such']", '1: allow_users: expected a user of this machine, got "no such"'),
        (
            "[supervision]\nhung_after = 1",
            "2: supervision.hung_after: expected more than supervision.health_period, or all will seem hung",
        ),
    ],
)
def test_a_mistake_names_its_line_and_what_was_expected(tmp_path: Path, text: str, mistake: str) -> None:
    assert mistakes(tmp_path, text) == [f"given.toml:{mistake}"]


@pytest.mark.parametrize("name", ["all", "gateway", "", "two words", "9lives", "../up", "x" * 33])
def test_a_name_must_be_usable_as_one(tmp_path: Path, name: str) -> None:
    (mistake,) = mistakes(tmp_path, f'roster = ["{name}"]')
    assert mistake.startswith("given.toml:1: roster: expected a name")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "example.org", "", "::"])
def test_specialists_stay_on_loopback(tmp_path: Path, host: str) -> None:
    (mistake,) = mistakes(tmp_path, f'host = "{host}"')
    assert mistake.startswith("given.toml:1: host: expected 127.0.0.1, ::1 or localhost")


def test_a_variable_and_a_flag_are_named_in_their_mistakes(tmp_path: Path) -> None:
    assert mistakes(tmp_path, "", {"gateway.port": "x"}, CHORUS_PORT_BASE="y", OLLAMA_HOST="box:z") == [
        'CHORUS_PORT_BASE: expected an integer 1-65435, got "y"',
        '--gateway-port: expected an integer 1-65535, got "x"',
        'OLLAMA_HOST: expected host, host:port or http://host:port, got "box:z"',
    ]


@pytest.mark.parametrize(("text", "where"), [("a = 1\nb = \n", "2:5"), ('x = """\n', "2:1"), ("[a]\n[a]\n", "2:3")])
def test_a_syntax_error_has_line_and_column(tmp_path: Path, text: str, where: str) -> None:
    (mistake,) = mistakes(tmp_path, text)
    assert mistake.startswith(f"given.toml:{where}: ")
    assert "(at" not in mistake


def test_what_a_broken_file_might_have_said_is_not_guessed_at(tmp_path: Path) -> None:
    assert len(mistakes(tmp_path, "[specialists.apollo2\n", CHORUS_ROSTER="apollo2")) == 1


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "given.toml").write_bytes(b"# one\n# \xff\n")
    with pytest.raises(ConfigError, match=r"given.toml:2: expected UTF-8"):
        load({}, tmp_path / "given.toml", {"HOME": str(tmp_path)})


def test_a_named_file_must_be_readable(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "gone", "no such file"), (tmp_path, "is a directory")):
        with pytest.raises(ConfigError, match=f"{path}: .*{reason}"):
            load({}, path, {"HOME": str(tmp_path)})


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "given.toml").touch(mode=0)
    with pytest.raises(ConfigError, match=r"given.toml: cannot be read: permission denied"):
        load({}, tmp_path / "given.toml", {"HOME": str(tmp_path)})


def test_a_near_miss_with_its_own_table_is_meant(tmp_path: Path) -> None:
    loaded = loaded_with(tmp_path, 'roster = ["apollo2"]\n[specialists.apollo2]\n')
    assert loaded.settings.roster == ["apollo2"]


def test_the_greek_names_one_might_add_are_not_near_misses(tmp_path: Path) -> None:
    added = ["zeus", "hera", "artemis", "demeter", "hestia", "ares", "dionysus", "eros", "themis", "gaia"]
    assert loaded_with(tmp_path, "", {"roster": added}).settings.roster == added


# -- lines ---------------------------------------------------------------------------------------------------


def test_a_line_is_found_however_the_key_is_written() -> None:
    text = '''\
a.b = 1   # [not.a.table]
"q.r" = "# [no] = 1"
text = """
[inside]
x = 1 \\""" y = 2
""\"""
raw = \'\'\'
z = "
\'\'\'
list = [ # comment ]
  "one", [2,
  3], { k = 4 },
]
[t . "u v"]
when = 2020-01-01T00:00:00.5Z
in = { deep = { er = 1 }, n = -1.5e3 }
[[many]]
last = true'''
    tomllib.loads(text)
    found = locate.lines(text)
    expected = {
        ("a", "b"): 1,
        ("q.r",): 2,
        ("text",): 3,
        ("raw",): 7,
        ("list",): 10,
        ("list", "0"): 11,
        ("list", "1"): 11,
        ("list", "1", "1"): 12,
        ("list", "2", "k"): 12,
        ("t",): 14,
        ("t", "u v", "when"): 15,
        ("t", "u v", "in", "deep", "er"): 16,
        ("t", "u v", "in", "n"): 16,
        ("many", "last"): 18,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert not {"inside", "x", "y", "z", "not", "no"} & {part for key in found for part in key}


def test_a_key_is_shown_as_one_would_type_it() -> None:
    assert locate.dotted(("a", "b c", "d-e")) == 'a."b c".d-e'


# -- places --------------------------------------------------------------------------------------------------


def test_folders_follow_the_xdg_rules(tmp_path: Path) -> None:
    dirs = places.dirs({"HOME": "/h", "XDG_STATE_HOME": "/s", "XDG_DATA_HOME": "relative", "XDG_RUNTIME_DIR": "/r"})
    assert dirs.config == Path("/h/.config/chorus")
    assert dirs.data == Path("/h/.local/share/chorus")
    assert (dirs.state, dirs.logs) == (Path("/s/chorus"), Path("/s/chorus/logs"))
    assert dirs.runtime == Path("/r/chorus")
    assert places.dirs({"HOME": "/h", "TMPDIR": "/t"}).runtime == Path(f"/t/chorus-{os.getuid()}")


def test_a_system_unit_uses_the_folders_of_its_manager() -> None:
    dirs = places.dirs(
        {
            "STATE_DIRECTORY": "/var/lib/chorus:/var/lib/other",
            "LOGS_DIRECTORY": "/var/log/chorus",
            "RUNTIME_DIRECTORY": "/run/chorus",
            "CONFIGURATION_DIRECTORY": "/etc/chorus",
        }
    )
    assert dirs == places.Dirs(
        config=Path("/etc/chorus"),
        data=Path("/var/lib/chorus/data"),
        state=Path("/var/lib/chorus"),
        logs=Path("/var/log/chorus"),
        runtime=Path("/run/chorus"),
    )


def test_a_user_unit_keeps_the_users_data_where_it_was() -> None:
    environ = {"HOME": "/h", "STATE_DIRECTORY": "/h/.local/state/chorus", "XDG_RUNTIME_DIR": "/run/user/1"}
    assert places.dirs(environ).data == Path("/h/.local/share/chorus")


def test_two_state_folders_have_two_sockets(tmp_path: Path) -> None:
    one, two = (loaded_with(tmp_path, XDG_STATE_HOME=f"/{name}", XDG_RUNTIME_DIR="/r").socket for name in "ab")
    assert one != two
    assert re.fullmatch(r"/r/chorus/[0-9a-f]{8}\.sock", str(one))


def test_a_socket_path_that_the_kernel_would_refuse_moves(tmp_path: Path) -> None:
    long = "/" + "x" * 100
    assert loaded_with(tmp_path, XDG_RUNTIME_DIR=long, TMPDIR="/t").socket.parent == Path(f"/t/chorus-{os.getuid()}")
    assert loaded_with(tmp_path, XDG_RUNTIME_DIR=long, TMPDIR=long).socket.parent == Path(f"/tmp/chorus-{os.getuid()}")
    assert mistakes(tmp_path, CHORUS_SOCKET=long) == ["CHORUS_SOCKET: expected a path of at most 100 bytes, got 101"]
    assert loaded_with(tmp_path, CHORUS_SOCKET="/run/x.sock").socket == Path("/run/x.sock")


def test_folders_are_made_for_their_owner_only(tmp_path: Path) -> None:
    made = places.private_folder(tmp_path / "state/chorus/logs")
    modes = [stat.S_IMODE(folder.stat().st_mode) for folder in (made, made.parent, made.parent.parent)]
    assert modes == [0o700] * 3


# -- the team ------------------------------------------------------------------------------------------------


def test_the_whole_roster_has_the_ports_of_the_table(tmp_path: Path) -> None:
    found = {one.name: one.port for one in team(loaded_with(tmp_path))}
    assert found == {name: 45000 + offset for name, offset in names.OFFSETS.items()}
    assert list(found) == list(names.ROSTER)


def test_a_specialist_is_found_by_any_spelling(tmp_path: Path) -> None:
    loaded = loaded_with(tmp_path)
    assert resolve(loaded, "Tekton-CI") == resolve(loaded, "tekton_core")
    with pytest.raises(NotFound, match='no specialist "apolo": did you mean "apollo"'):
        resolve(loaded, "apolo")


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("127.0.0.1", ["127.0.0.1", "::1"]),
        ("localhost", ["127.0.0.1", "::1"]),
        ("::1", ["::1"]),
        ("127.0.0.2", ["127.0.0.2"]),
    ],
)
def test_localhost_means_both_loopback_addresses(tmp_path: Path, host: str, addresses: list[str]) -> None:
    assert resolve(loaded_with(tmp_path, f'host = "{host}"'), "numa").addresses == addresses


@pytest.mark.parametrize(
    ("text", "places", "url"),
    [
        ("", [("127.0.0.1", 8003), ("::1", 8003)], "http://127.0.0.1:8003"),
        ("also_ports = [8000]", [("127.0.0.1", 8003), ("::1", 8003), ("127.0.0.1", 8000), ("::1", 8000)], None),
        ("host = '0:0:0:0:0:0:0:1'", [("::1", 8003)], "http://[::1]:8003"),
        ("host = '0.0.0.0'", [("0.0.0.0", 8003)], "http://127.0.0.1:8003"),
    ],
)
def test_the_gateway_listens_at_every_port_of_its_address(
    tmp_path: Path, text: str, places: list[tuple[str, int]], url: str | None
) -> None:
    found = roster.gateway(loaded_with(tmp_path, f"[gateway]\n{text}"))
    assert found.places == places
    assert url in (None, found.url)
    assert found.setting_of(8003) == "gateway.port"
    assert found.setting_of(8000) == "gateway.also_ports"


def test_the_gateway_is_told_where_its_certificate_is(tmp_path: Path) -> None:
    text = "[gateway]\ntls_certificate = 'cert.pem'\ntls_key = '~/key.pem'"
    missing = f"given.toml:2: gateway.tls_certificate: cannot read {tmp_path}/cert.pem: no such file or directory"
    assert mistakes(tmp_path, text)[0] == missing
    certified(tmp_path)
    found = roster.gateway(loaded_with(tmp_path, text))
    assert (found.settings.tls_certificate, found.settings.tls_key) == (f"{tmp_path}/cert.pem", f"{tmp_path}/key.pem")
    assert found.url.startswith("https://")


def test_a_certificate_that_the_gateway_could_not_serve_with_is_a_mistake(tmp_path: Path) -> None:
    certified(tmp_path)
    text = "[gateway]\ntls_certificate = 'cert.pem'\ntls_key = 'other.pem'"
    (tmp_path / "other.pem").write_text("hello")
    wrong = f"{tmp_path}/cert.pem and {tmp_path}/other.pem are no certificate with its key"
    assert mistakes(tmp_path, text) == [f"given.toml:2: gateway.tls_certificate: {wrong}"]


def test_the_gateway_is_not_told_what_changes_of_a_specialist_or_of_how_it_is_kept(tmp_path: Path) -> None:
    before = roster.gateway(loaded_with(tmp_path, ""))
    text = "[specialists.apollo]\npersona = 'Another.'\n[gateway]\nrestart = 'never'\nmax_rss_bytes = 2097152"
    loaded = loaded_with(tmp_path, text)
    assert roster.gateway(loaded) == before
    assert supervision(loaded, "gateway").restart == "never"
    assert supervision(loaded, "gateway").max_rss_bytes == 2097152
    assert supervision(loaded, "apollo").restart == "always"


def test_what_is_said_of_one_specialist_covers_what_is_said_of_all(tmp_path: Path) -> None:
    text = """\
allow_users = ["root"]
[backend]
model = "big"
options = { seed = 1, temperature = 0.7 }
[specialists.Apollo-AI]
model = "small"
port = 5000
description = "Mine."
options = { temperature = 0 }
[supervision]
grace = 3
"""
    apollo, numa = (resolve(loaded_with(tmp_path, text), name) for name in ("apollo", "numa"))
    assert (apollo.model, apollo.port, apollo.description) == ("small", 5000, "Mine.")
    assert apollo.options == {"seed": 1, "temperature": 0}
    assert (numa.model, numa.options) == ("big", {"seed": 1, "temperature": 0.7})
    assert (numa.grace, numa.allowed_uids, numa.state_dir) == (
        3.0,
        [0],
        str(tmp_path / ".local/state/chorus"),
    )


def test_members_of_the_group_that_may_control_the_team_may_talk_to_it(tmp_path: Path) -> None:
    group = pwd.getpwuid(os.getuid()).pw_gid
    loaded = loaded_with(tmp_path, CHORUS_GROUP=str(group))
    assert loaded.control_gid == group
    assert os.getuid() in resolve(loaded, "numa").allowed_uids
    assert loaded_with(tmp_path).control_gid is None
    with pytest.raises(ConfigError, match='CHORUS_GROUP: expected a group of this machine, got "nobodys"'):
        loaded_with(tmp_path, CHORUS_GROUP="nobodys")


def test_a_name_outside_the_table_keeps_its_port(tmp_path: Path) -> None:
    def ports(roster: str, text: str = "") -> dict[str, int]:
        return {one.name: one.port for one in team(loaded_with(tmp_path, text, CHORUS_ROSTER=roster))}

    assert ports("zeus,hera") == {"zeus": 45100, "hera": 45101}
    assert ports("hera,ares,zeus") == {"hera": 45101, "ares": 45102, "zeus": 45100}
    assert ports("hera") == {"hera": 45101}
    assert ports("hera,zeus", "[gateway]\nport = 45101\n") == {"hera": 45103, "zeus": 45100}
    assert ports("zeus", "[specialists.zeus]\nport = 77\n") == {"zeus": 77}


def test_a_damaged_memory_of_ports_does_not_stop_the_team(tmp_path: Path) -> None:
    state = tmp_path / ".local/state/chorus"
    state.mkdir(parents=True)
    (state / "ports.json").write_text("{")
    assert team(loaded_with(tmp_path, CHORUS_ROSTER="zeus"))[0].port == 45100


def test_ports_that_do_not_exist_are_not_given(tmp_path: Path) -> None:
    loaded = loaded_with(tmp_path, CHORUS_ROSTER="zeus,hera", CHORUS_PORT_BASE="65435")
    with pytest.raises(ConfigError, match="no port is left for hera"):
        team(loaded)


def test_the_team_of_the_table_writes_nothing(tmp_path: Path) -> None:
    team(loaded_with(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_reading_the_configuration_imports_nothing_heavy() -> None:
    heavy = "{'aiohttp', 'anyio', 'rich', 'psutil', 'asyncio'} & set(sys.modules)"
    code = f"import sys, supervisor.config; supervisor.config.load({{}}, None, {{}}); print({heavy})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert found.stdout == "set()\n"
