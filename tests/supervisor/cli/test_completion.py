"""`chorus completion`: the scripts, in the shells they are for."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import click
import pytest

from supervisor.cli.main import COMMANDS, chorus
from supervisor.cli.scripts import script
from supervisor.cli.words import places

ROSTER = ["apollo", "athena", "metis"]

# Each asks for what may follow the words, the last of which is being typed; one offer a line.
BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_chorus
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
compdef() { : }
_files() { print -l -- *(N) }
_describe() { print -l -- ${(P)2%%:*} }
compadd() { shift; print -l -- $@ }
source $1; shift
words=("$@"); CURRENT=$#
_chorus | grep "^$words[CURRENT]" || :
"""
FISH = """
source $argv[1]
complete -C (string join ' ' -- $argv[2..]) | string split -f1 \\t
"""
COMMANDS_OF = {
    "bash": ["bash", "--norc", "-c", BASH, "bash"],
    "zsh": ["zsh", "-f", "-c", ZSH, "zsh"],
    "fish": ["fish", "--no-config", "-c", FISH],
}


@pytest.fixture(params=["bash", "zsh", "fish"])
def shell(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if shutil.which(name) is None:
        reason = f"{name} is not installed"
        print(reason)
        pytest.skip(reason)
    return name


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def offered(shell: str, home: Path, *words: str) -> list[str]:
    """What the shell offers; the script is written as the command would, for a team of three."""
    path = home / f"chorus.{shell}"
    if not path.exists():
        with click.Context(chorus, info_name="chorus") as ctx:
            path.write_text(script(shell, list(places(chorus, ctx)), ROSTER))
    done = subprocess.run(
        [*COMMANDS_OF[shell], str(path), *words],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "TERM": "dumb", "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


def test_commands_are_offered(shell: str, home: Path) -> None:
    assert set(offered(shell, home, "chorus", "")) >= set(COMMANDS)
    assert offered(shell, home, "chorus", "resta") == ["restart"]


def test_names_of_the_roster_are_offered_where_names_are_taken(shell: str, home: Path) -> None:
    assert sorted(offered(shell, home, "chorus", "restart", "a")) == ["all", "apollo", "athena"]
    assert offered(shell, home, "chorus", "restart", "apollo", "me") == ["metis"]
    assert offered(shell, home, "chorus", "logs", "super") == ["supervisor"]
    assert offered(shell, home, "chorus", "models", "pull", "apo") == []


def test_names_come_from_the_registry_where_there_is_one(shell: str, home: Path) -> None:
    state = home / ".local/state/chorus"
    state.mkdir(parents=True)
    specialists = [{"name": "zeus", "ai_id": "zeus-ci"}, {"name": "hera", "ai_id": "hera-ci"}]
    (state / "registry.json").write_text(json.dumps({"specialists": specialists}, separators=(",", ":")))
    assert sorted(offered(shell, home, "chorus", "history", "")) == ["export", "hera", "rm", "search", "show", "zeus"]
    assert sorted(offered(shell, home, "chorus", "status", "")) == ["gateway", "hera", "zeus"]


def test_options_are_offered_and_their_values(shell: str, home: Path) -> None:
    assert offered(shell, home, "chorus", "logs", "--si") == ["--since"]
    assert sorted(offered(shell, home, "chorus", "--color", "a")) == ["always", "auto"]
    assert offered(shell, home, "chorus", "completion", "b") == ["bash"]


def test_the_value_of_an_option_is_no_command(shell: str, home: Path) -> None:
    assert offered(shell, home, "chorus", "--port-base", "4000", "models", "p") == ["pull"]
    assert offered(shell, home, "chorus", "--config", "down", "dow") == ["down"]
    assert offered(shell, home, "chorus", "logs", "--since", "") == []


def test_bash_cuts_an_option_and_its_value_at_the_equals_sign(home: Path) -> None:
    assert offered("bash", home, "chorus", "--color", "=", "n") == ["never"]
    assert offered("bash", home, "chorus", "--color", "=", "always", "dow") == ["down"]


def test_completing_takes_no_chorus_and_little_time(home: Path) -> None:
    """chorus is not on the PATH here; the bound is 50 ms, and bash itself needs a few to start."""
    offered("bash", home, "chorus", "")
    took = []
    for _ in range(5):
        began = time.perf_counter()
        offered("bash", home, "chorus", "restart", "a")
        took.append(time.perf_counter() - began)
    assert min(took) < 0.05


def test_every_script_is_valid_for_its_shell(shell: str, home: Path) -> None:
    offered(shell, home, "chorus", "")
    done = subprocess.run([shell, "-n", str(home / f"chorus.{shell}")], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
