from __future__ import annotations

import logging
import re
from pathlib import Path

import anyio
import pytest

from supervisor.fleet.marks import RAW_OUTPUT_LIMIT, Marks


def test_a_mark_looks_like_the_other_lines_of_the_log(tmp_path: Path) -> None:
    Marks(tmp_path).write("apollo", "started, pid 7")
    line = (tmp_path / "apollo.log").read_text()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}"
    assert re.fullmatch(rf"{stamp} INFO apollo: \[supervisor\] started, pid 7\n", line)


def test_a_mark_is_one_line_whatever_it_says(tmp_path: Path) -> None:
    Marks(tmp_path).write("apollo", "one\ntwo")
    assert (tmp_path / "apollo.log").read_text().count("\n") == 1


def test_a_mark_goes_behind_what_a_rotation_left(tmp_path: Path) -> None:
    marks, log = Marks(tmp_path), tmp_path / "apollo.log"
    marks.write("apollo", "before")
    log.rename(tmp_path / "apollo.log.1")
    marks.write("apollo", "after")
    assert "after" in log.read_text()
    assert "before" not in log.read_text()


def test_a_log_that_cannot_be_written_is_a_line_in_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "apollo.log").mkdir()
    with caplog.at_level(logging.ERROR):
        Marks(tmp_path).write("apollo", "started")
    assert "cannot write to the log of apollo" in caplog.text


async def capped(folder: Path) -> None:
    """Looks at the raw output once: its writer's sleep is where it can be cancelled."""
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(Marks(folder).cap, ["apollo"])
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["apollo", "supervisor", "forkserver"])
async def test_raw_output_over_its_limit_keeps_its_newest_part(tmp_path: Path, name: str) -> None:
    raw = tmp_path / f"{name}.out"
    raw.write_bytes(b"old" * RAW_OUTPUT_LIMIT + b"newest")
    await capped(tmp_path)
    assert raw.stat().st_size == RAW_OUTPUT_LIMIT // 2
    assert raw.read_bytes().endswith(b"newest")


async def test_whoever_writes_to_raw_output_goes_on_behind_what_was_kept(tmp_path: Path) -> None:
    raw = tmp_path / "apollo.out"
    with raw.open("ab", buffering=0) as writer:
        writer.write(b"x" * (RAW_OUTPUT_LIMIT + 1))
        await capped(tmp_path)
        writer.write(b"more")
    assert raw.stat().st_size == RAW_OUTPUT_LIMIT // 2 + 4


async def test_raw_output_within_its_limit_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "apollo.out").write_bytes(b"x" * RAW_OUTPUT_LIMIT)
    await capped(tmp_path)
    assert (tmp_path / "apollo.out").stat().st_size == RAW_OUTPUT_LIMIT
