"""`chorus config`: what goes to stdout, what to stderr, and that nothing of the user's is overwritten."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from certifying import certified
from click.testing import CliRunner, Result

from protocol.settings import Settings, SpecialistSettings
from supervisor import config as configuration
from supervisor.cli.config import as_toml, config_command, example
from supervisor.cli.context import Invocation
from supervisor.config import ConfigError, load


@pytest.fixture(autouse=True)
def no_system_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(configuration, "SYSTEM_FILE", tmp_path / "etc/chorus.toml")


def chorus(home: Path, *words: str, config_file: Path | None = None, **environ: str) -> Result:
    call = Invocation(config_file=config_file, environ={"HOME": str(home), **environ})
    return CliRunner().invoke(config_command, list(words), obj=call)


def test_a_right_configuration_is_ok_and_its_files_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("port_base = 3000\n")
    result = chorus(tmp_path, "check", config_file=file)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"ok\n{file}\n", "")


def test_without_a_file_the_defaults_are_ok(tmp_path: Path) -> None:
    result = chorus(tmp_path, "check")
    assert (result.exit_code, result.stdout) == (0, "ok\n")
    assert "built-in defaults" in result.stderr


def test_mistakes_are_left_to_the_main_group(tmp_path: Path) -> None:
    result = chorus(tmp_path, "check", CHORUS_PORT_BASE="x")
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == 'CHORUS_PORT_BASE: expected an integer 1-65435, got "x"'


def test_what_is_shown_is_toml_that_says_the_same_again(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        '[specialists.apollo]\npersona = "a\\"b\\n\\u007fé"\n[backend.options]\n"a.b" = [1, "x"]\nt = 0.5\n'
    )
    shown = chorus(tmp_path, "show", config_file=file).stdout
    (tmp_path / "again.toml").write_text(shown)
    environ = {"HOME": str(tmp_path)}
    assert load({}, tmp_path / "again.toml", environ).settings == load({}, file, environ).settings


def test_origins_are_comments_behind_the_values(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[gateway]\n\nport = 9000\n")
    lines = chorus(tmp_path, "show", "--origin", config_file=file, CHORUS_MODEL="m").stdout.splitlines()
    assert f"port = 9000  # {file}:3" in lines
    assert 'model = "m"  # CHORUS_MODEL' in lines
    assert "port_base = 45000  # default" in lines


def test_json_is_one_versioned_object(tmp_path: Path) -> None:
    report = json.loads(chorus(tmp_path, "show", "--json", CHORUS_SOCKET="/run/x.sock").stdout)
    assert (report["version"], report["socket"]) == (1, "/run/x.sock")
    assert msgspec.convert(report["settings"], Settings) == load({}, None, {"HOME": str(tmp_path)}).settings
    assert report["origins"]["port_base"] == "default"
    assert report["dirs"]["config"] == str(tmp_path / ".config/chorus")


def test_init_writes_a_file_that_changes_nothing(tmp_path: Path) -> None:
    result = chorus(tmp_path, "init")
    file = tmp_path / ".config/chorus/config.toml"
    assert (result.exit_code, result.stdout) == (0, f"{file}\n")
    assert tomllib.loads(file.read_text()) == {}
    assert chorus(tmp_path, "check").stdout == f"ok\n{file}\n"


def test_init_never_overwrites(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("port_base = 3000\n")
    result = chorus(tmp_path, "init", config_file=file)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "exists" in result.stderr
    assert file.read_text() == "port_base = 3000\n"


def test_force_keeps_every_file_that_was_there(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("port_base = 3000\n")
    assert chorus(tmp_path, "init", "--force", config_file=file).exit_code == 0
    assert chorus(tmp_path, "init", "--force", config_file=file).exit_code == 0
    assert file.read_text() == (tmp_path / "mine.toml.bak1").read_text() == example()
    assert (tmp_path / "mine.toml.bak").read_text() == "port_base = 3000\n"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / ".config").write_text("a file")
    result = chorus(tmp_path, "init")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "cannot write" in result.stderr


def test_the_path_is_the_file_to_edit(tmp_path: Path) -> None:
    result = chorus(tmp_path, "path")
    assert result.stdout == f"{tmp_path}/.config/chorus/config.toml\n"
    assert "does not exist yet" in result.stderr
    assert chorus(tmp_path, "path", CHORUS_CONFIG="/x/y.toml").stdout == "/x/y.toml\n"


def uncommented() -> str:
    """The example with every key in force; its prose goes."""
    lines = (line.removeprefix("# ") for line in example().splitlines()[3:])
    return "\n".join(lines)


def test_the_example_shows_every_key_of_the_schema() -> None:
    shown = tomllib.loads(uncommented())
    schema = msgspec.to_builtins(Settings())
    assert set(shown) == set(schema)
    for name, table in schema.items():
        if isinstance(table, dict) and table:
            assert set(shown[name]) == set(table), name
    assert set(shown["specialists"]["apollo"]) == {one.name for one in msgspec.structs.fields(SpecialistSettings)}


def test_the_example_shows_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(uncommented())
    (tmp_path / "api-key").write_text("k")
    certified(tmp_path)
    shown = load({}, file, {"HOME": str(tmp_path)}).settings
    supervision = msgspec.structs.replace(shown.supervision, max_rss_bytes=None)  # there is none by default
    has_no_default = ("tls_certificate", "tls_key", "engram_url", "restart", "max_rss_bytes")
    gateway = msgspec.structs.replace(shown.gateway, **dict.fromkeys(has_no_default))
    shown = msgspec.structs.replace(shown, supervision=supervision, gateway=gateway)
    for name in (
        "host",
        "port_base",
        "limits",
        "supervision",
        "gateway",
        "history",
        "cache",
        "cost",
        "allow_users",
    ):
        assert getattr(shown, name) == getattr(Settings(), name), name


def test_empty_tables_are_not_shown() -> None:
    assert list(as_toml({"a": {}, "b": {"c": {"d": 1}}}, {})) == ["\n[b.c]", "d = 1"]


def test_no_line_of_the_example_is_too_wide_for_a_terminal() -> None:
    assert [line for line in example().splitlines() if not re.fullmatch(r".{0,110}", line)] == []
