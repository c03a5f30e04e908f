"""`chorus version`, and what starting fast rests on: which modules are not imported."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from team import Team

from protocol import __version__
from protocol.control import SupervisorStatus
from supervisor.cli import version
from supervisor.cli.context import Invocation

HEAVY = ("aiohttp", "anyio", "asyncio", "rich", "psutil", "sqlite3", "ssl")


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with Team.start(tmp_path_factory.mktemp("version"), roster=["apollo"]) as team:
        yield team


def imported(team: Team, *args: str) -> set[str]:
    """The heavy modules that a command has loaded when it ends."""
    code = (
        "import os, sys\n"
        "from supervisor.cli import main\n"
        f"sys.argv = ['chorus', *{list(args)!r}]\n"
        "def end(code):\n"
        "    sys.stdout.flush()\n"
        f"    print('loaded', *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
        "os._exit = end\n"
        "try:\n"
        "    main()\n"
        "except BaseException:\n"
        "    pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=team.env, capture_output=True, text=True, timeout=20)
    loaded = [line for line in done.stderr.splitlines() if line.startswith("loaded")]
    assert loaded, done.stderr
    return set(loaded[0].split()[1:])


def test_the_supervisor_tells_its_version(team: Team) -> None:
    done = team.run("version")
    assert (done.returncode, done.stderr) == (0, "")
    facts = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines()}
    pid = team.status()["supervisor"]["pid"]
    assert facts == {
        "chorus": __version__,
        "supervisor": f"{__version__} (pid {pid})",
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def test_json_is_one_versioned_object(team: Team) -> None:
    told = json.loads(team.run("version", "--json").stdout)
    assert (told["version"], told["chorus"], told["supervisor"]["version"]) == (1, __version__, __version__)


def test_without_a_supervisor_it_is_not_running(tmp_path: Path) -> None:
    with Team.prepare(tmp_path) as nobody:
        assert json.loads(nobody.run("version", "--json").stdout)["supervisor"] is None
        assert "supervisor  not running\n" in nobody.run("version").stdout


@pytest.mark.parametrize("theirs", ["0.0.1", None])
def test_a_supervisor_of_another_version_is_a_warning_on_stderr(
    theirs: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Report:
        supervisor = SupervisorStatus(7, 1.0, "running", theirs)

    monkeypatch.setattr(version, "glance", lambda loaded, names: Report())
    call = Invocation(environ={"HOME": str(tmp_path)})
    done = CliRunner().invoke(version.version_command, [], obj=call)
    assert "warning: the supervisor is " in done.stderr
    assert "warning" not in done.stdout


@pytest.mark.parametrize("args", [["--version"], ["status"], ["status", "--json"], ["version"]])
def test_what_must_start_fast_imports_nothing_heavy(team: Team, args: list[str]) -> None:
    assert imported(team, *args) == set()


def test_help_imports_every_command_and_still_nothing_heavy(team: Team) -> None:
    assert not imported(team, "--help") & {"aiohttp", "asyncio", "rich", "psutil"}


def test_status_imports_no_http_when_nothing_runs(tmp_path: Path) -> None:
    with Team.prepare(tmp_path) as nobody:
        assert not imported(nobody, "status") & {"aiohttp", "rich", "psutil"}
