from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from keeping import wait_gone
from team import ROOT

from supervisor.fleet import pidfiles
from supervisor.fleet.calls import Process


@pytest.fixture
def ours() -> Process:
    return msgspec.structs.replace(pidfiles.this_process(), name="apollo", places=[("127.0.0.1", 45012)])


def test_a_living_process_is_found_by_its_file(tmp_path: Path, ours: Process) -> None:
    pidfiles.create(tmp_path, ours)
    assert pidfiles.living(tmp_path) == [ours]


def test_a_stranger_with_the_same_number_is_not_taken_for_it(tmp_path: Path, ours: Process) -> None:
    assert ours.ticks is not None
    before = msgspec.structs.replace(ours, ticks=ours.ticks - 1)
    pidfiles.create(tmp_path, before)
    assert pidfiles.living(tmp_path) == []
    assert list(tmp_path.iterdir()) == [], "nor is its file kept"


def test_a_process_of_an_earlier_boot_is_gone(ours: Process) -> None:
    assert pidfiles.is_alive(ours)
    assert not pidfiles.is_alive(msgspec.structs.replace(ours, boot="another"))


def test_a_zombie_is_gone(ours: Process) -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        known = msgspec.structs.replace(ours, pid=child.pid, ticks=pidfiles.ticks_of(child.pid))
        assert pidfiles.is_alive(known)
        child.kill()
        wait_gone(child.pid)  # ended, and not waited for
        assert not pidfiles.is_alive(known)


def test_a_file_that_knows_more_is_not_overwritten_by_the_newborn(tmp_path: Path, ours: Process) -> None:
    stopping = msgspec.structs.replace(ours, stopping=True)
    pidfiles.replace(tmp_path, stopping)
    pidfiles.create(tmp_path, ours)
    assert pidfiles.living(tmp_path) == [stopping]
    pidfiles.remove(tmp_path, ours)
    assert list(tmp_path.iterdir()) == []


def test_half_a_file_is_nobody(tmp_path: Path) -> None:
    (tmp_path / f"apollo.{os.getpid()}").write_text('{"name": "apo')
    assert pidfiles.living(tmp_path) == []


def test_no_file_is_removed_for_want_of_descriptors(tmp_path: Path, ours: Process) -> None:
    pidfiles.create(tmp_path, ours)
    code = "import resource, sys; from pathlib import Path; from supervisor.fleet import pidfiles; folder = Path(sys.argv[1]);"
    code += "paths = list(folder.iterdir()); folder = type('F', (), {'glob': lambda *_: paths})();"
    code += "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); pidfiles.living(folder)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)
    assert pidfiles.living(tmp_path) == [ours]


def test_a_folder_that_is_not_there_has_nobody(tmp_path: Path) -> None:
    assert pidfiles.living(tmp_path / "none") == []
