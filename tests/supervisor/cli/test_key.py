"""`chorus key`: what is printed where, what is kept, and what a gateway makes of it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from team import Team

from supervisor.cli.context import Invocation
from supervisor.cli.exits import Failure
from supervisor.cli.key import key_command
from supervisor.gateway import keys, uses
from supervisor.gateway.keys import Keys


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def chorus(home: Path, *words: str) -> Result:
    environ = {"HOME": str(home), "XDG_DATA_HOME": str(home / "data"), "XDG_STATE_HOME": str(home / "state")}
    return CliRunner().invoke(key_command, list(words), obj=Invocation(environ=environ))


def kept(home: Path) -> Path:
    return home / "data/chorus" / keys.FILE


def listed(home: Path) -> list[dict[str, object]]:
    told = json.loads(chorus(home, "list", "--json").stdout)
    assert told["version"] == 1
    found: list[dict[str, object]] = told["keys"]
    return found


def test_a_key_is_printed_once_and_alone(home: Path) -> None:
    made = chorus(home, "create", "--name", "laptop")
    assert made.exit_code == 0
    text = made.stdout.removesuffix("\n")
    found = Keys(kept(home)).find(text)
    assert found is not None
    assert (found.name, found.scope, found.expires) == ("laptop", "chat", None)
    assert f"key {found.id}, scope chat" in made.stderr
    assert "cannot be shown again" in made.stderr
    assert text not in kept(home).read_text() + chorus(home, "list").output + chorus(home, "list", "--json").output
    assert kept(home).parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("said", "seconds"), [("30d", 30 * 86400), ("12h", 12 * 3600), ("1h30m", 5400)])
def test_a_key_may_have_an_end_and_may_be_for_admins(home: Path, said: str, seconds: float) -> None:
    assert chorus(home, "create", "--scope", "admin", "--expires", said).exit_code == 0
    [found] = listed(home)
    assert found["scope"] == "admin"
    assert found["expires"] == pytest.approx(time.time() + seconds, abs=60)
    assert found["expired"] is False


@pytest.mark.parametrize("said", ["tomorrow", "0d", "2001-01-01", "-5d", "99999999999d", ""])
def test_an_end_that_is_none_is_a_mistake(home: Path, said: str) -> None:
    made = chorus(home, "create", "--expires", said)
    assert made.exit_code == 2
    assert "--expires" in made.output
    assert listed(home) == []


def test_the_list_says_what_each_is_for_and_when_it_was_used(home: Path) -> None:
    chorus(home, "create", "--name", "laptop")
    chorus(home, "create", "--scope", "admin")
    first, second = listed(home)
    at = time.time() // 60 * 60
    (home / "state/chorus").mkdir(parents=True)
    (home / "state/chorus" / uses.FILE).write_text(json.dumps({first["id"]: at}))
    header, *rows = chorus(home, "list").stdout.splitlines()
    assert header.split() == ["ID", "SCOPE", "CREATED", "EXPIRES", "USED", "NAME"]
    assert rows[0].split()[:2] == [first["id"], "chat"]
    assert rows[0].endswith("laptop")
    assert rows[1].split()[-2:] == ["never", "never"]
    assert [one["last_used"] for one in listed(home)] == [at, None]
    assert second["scope"] == "admin"


def test_no_keys_are_no_failure(home: Path) -> None:
    told = chorus(home, "list")
    assert (told.exit_code, told.stdout) == (0, "")
    assert "chorus key create" in told.stderr


def test_a_key_is_revoked_by_its_id_or_by_itself(home: Path) -> None:
    one, other = (chorus(home, "create").stdout.strip() for _ in range(2))
    first, _ = listed(home)
    assert chorus(home, "revoke", str(first["id"])).exit_code == 0
    assert Keys(kept(home)).find(one) is None
    assert chorus(home, "revoke", other).exit_code == 0
    assert listed(home) == []


@pytest.mark.parametrize("made", [True, False])
def test_an_unknown_id_is_a_failure(home: Path, made: bool) -> None:
    if made:
        chorus(home, "create")
    told = chorus(home, "revoke", "00000000")
    assert isinstance(told.exception, Failure)
    assert (told.exception.code, told.exception.remedy) == ("not_found", "chorus key list")


def test_a_broken_file_is_not_written_over(home: Path) -> None:
    chorus(home, "create")
    kept(home).write_text("{")
    for words in (("create",), ("list",), ("revoke", "00000000")):
        told = chorus(home, *words)
        assert isinstance(told.exception, Failure)
        assert str(kept(home)) in told.exception.sentence
    assert kept(home).read_text() == "{"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_holds_no_keys(home: Path) -> None:
    kept(home).parent.mkdir(parents=True)
    os.chown(kept(home).parent, 65534, 65534)
    assert isinstance(chorus(home, "create").exception, Failure)


def test_names_that_would_write_on_a_terminal_are_refused(home: Path) -> None:
    for name in ("a\nb", "\x1b[31mred", "x" * 101):
        assert chorus(home, "create", "--name", name).exit_code == 2


def test_the_whole_program_keeps_words_from_the_key(tmp_path: Path) -> None:
    team = Team.prepare(tmp_path)
    made = team.run("key", "create", "--expires", "1d")
    assert made.returncode == 0
    assert keys.TEXT.fullmatch(made.stdout.removesuffix("\n"))
    assert "until" in made.stderr
    gone = team.run("key", "revoke", "nothing")
    assert gone.returncode == 1
    assert gone.stderr == "error: there is no key 'nothing'\n  do: chorus key list\n"
    assert team.run("key", "list", "--json").stdout.count('"id"') == 1
