"""Every code block of the README and of docs/ is true: console sessions are run and compared, configuration is loaded, and
commands that only a reader can run exist. A block that is marked `console systemd` is run under a user manager.

In the blocks … stands for anything. Ports are moved, so that a team of the reader's own is not met.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from certifying import certified
from ports import GATEWAY_OFFSET, free_port_base
from user_manager import UserManager

from protocol.settings import Gateway
from supervisor.cli.main import COMMANDS
from supervisor.config import load
from supervisor.config import team as whole_team

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEFAULT_BASE = 45000
BLOCK = re.compile(r"^```(\w+(?: \w+)?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, *kinds: str) -> list[str]:
    return [found[2] for found in BLOCK.finditer(text) if found[1] in kinds]


DOCS = {"README.md": README, **{path.name: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}}


def in_docs(*kinds: str) -> list[pytest.ParameterSet]:
    """Every such block, by its file and place in it."""
    return [
        pytest.param(body, id=f"{name}-{number}")
        for name, text in DOCS.items()
        for number, body in enumerate(blocks(text, *kinds))
    ]


class Reader:
    """Somebody who reads the README from the top and types what it says, in a home of its own."""

    def __init__(self, home: Path, base: int, where: Sequence[str] = ()) -> None:
        self.base = base
        self.where = where
        keep = {"PATH", "LANG", "TERM"}
        self.environ = {key: value for key, value in os.environ.items() if key in keep}
        self.environ |= {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home / "run"),
            "CHORUS_PORT_BASE": str(base),
            "CHORUS_GATEWAY_PORT": str(base + GATEWAY_OFFSET),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            # A model server of this machine must not answer: what is written is what a newcomer without one sees.
            "CHORUS_BACKEND": "builtin",
        }

    def types(self, command: str) -> str:
        """Runs one line and returns everything it printed, in the ports of this run."""
        done = subprocess.run(
            [*self.where, "bash", "-c", moved(command, self.base)],
            cwd=ROOT,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    home = tmp_path_factory.mktemp("newcomer")
    newcomer = Reader(home, free_port_base())
    yield newcomer
    newcomer.types("chorus down")


def steps(block: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that it is said to print."""
    command, expected = "", list[str]()
    for line in block.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, expected
            command, expected = line[2:], []
        else:
            expected.append(line)
    yield command, expected


def moved(text: str, base: int) -> str:
    """With the ports of this run."""
    text = re.sub(r"\b45(\d{3})\b", lambda port: str(base + int(port[1])), text)
    return re.sub(rf"\b{Gateway().port}\b", str(base + GATEWAY_OFFSET), text)


def pattern(expected: list[str], base: int) -> re.Pattern[str]:
    """What must be printed: … is anything, ports are those of this run."""
    text = moved("\n".join(expected), base)
    return re.compile(re.escape(_level(text)).replace("…", r"[\s\S]*"))


def _level(text: str) -> str:
    """Columns are as wide as what stands in them: any gap is one gap."""
    return re.sub(r" {2,}", "  ", text)


@pytest.mark.parametrize("block", in_docs("console"))
def test_the_readme_shows_what_happens(reader: Reader, block: str) -> None:
    _follow(reader, block)


@pytest.mark.parametrize("block", in_docs("console systemd"))
def test_what_is_written_of_systemd_happens(user_manager: UserManager, block: str) -> None:
    reader = Reader(user_manager.home, free_port_base(), user_manager.command())
    reader.environ["XDG_RUNTIME_DIR"] = user_manager.env["XDG_RUNTIME_DIR"]
    _follow(reader, block)


@pytest.mark.parametrize("block", in_docs("sh"))
def test_commands_that_are_not_run_here_exist(block: str) -> None:
    for line in block.splitlines():
        words = [word for word in shlex.split(line, comments=True) if word != "sudo"]
        if words and Path(words[0]).name == "chorus":
            named = [word for word in words[1:] if not word.startswith("-")]
            assert named[0] in COMMANDS, line
        elif words and "/" in words[0]:
            assert os.access(ROOT / words[0], os.X_OK), line


def _follow(reader: Reader, block: str) -> None:
    for command, expected in steps(block):
        printed = "\n".join(line.rstrip() for line in reader.types(command).splitlines())
        assert pattern(expected, reader.base).search(_level(printed)), f"$ {command}\n{printed}"


def test_the_configuration_in_the_readme_is_accepted(tmp_path: Path) -> None:
    shown = [body for text in DOCS.values() for body in blocks(text, "toml")]
    assert shown
    certified(tmp_path)
    for number, body in enumerate(shown):
        assert tomllib.loads(body)
        file = tmp_path / f"{number}.toml"
        file.write_text(body)
        loaded = load({}, file, {"HOME": str(tmp_path)})
        assert [one.name for one in whole_team(loaded)] == loaded.settings.roster


def test_every_kind_of_block_is_tested() -> None:
    kinds = {found[1] for text in DOCS.values() for found in BLOCK.finditer(text)}
    # Those of OpenAI's clients are run by their own tests, in tests/supervisor/gateway.
    assert kinds <= {"console", "console systemd", "toml", "sh", "yaml", "python"}
    # The README's one sh block is the command that runs this very test.
    assert blocks(README, "sh") == ["scripts/test\n"]


def test_the_team_in_the_readme_is_the_roster() -> None:
    from protocol.names import OFFSETS

    rows = dict(re.findall(r"^\| (\w+) \| (45\d{3}) \|", README, re.MULTILINE))
    assert {name: int(port) - DEFAULT_BASE for name, port in rows.items()} == OFFSETS


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 300
