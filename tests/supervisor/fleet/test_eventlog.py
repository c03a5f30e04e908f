"""What is on disk of the events, whatever happens to the disk and to whoever writes."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.control import Transition
from supervisor.fleet import eventlog
from supervisor.fleet.eventlog import FILE, ROTATED, EventLog, last_number, latest, read_record


def event(seq: int, cause: str = "asked") -> Transition:
    return Transition(seq=seq, name="apollo", from_="stopped", to="starting", cause=cause, at=1.0)


def record(seq: int) -> bytes:
    return b'{"type":"transition","seq":%d,"name":"a","from":"b","to":"c","cause":"d","at":1.0}' % seq


def write(log: EventLog, count: int, cause: str = "asked") -> None:
    for _ in range(count):
        log.append(event(log.seq + 1, cause))


def numbers(path: Path) -> list[int]:
    """What readers find, oldest first."""
    files = [path.with_name(f"{path.name}.{number}") for number in range(ROTATED, 0, -1)]
    lines = b"\n".join(file.read_bytes() for file in [*files, path] if file.exists()).split(b"\n")
    return [found.seq for line in lines if (found := read_record(line)) is not None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state/events.ndjson"


@pytest.fixture
def log(path: Path) -> Iterator[EventLog]:
    log = EventLog(path)
    yield log
    log.close()


def test_numbers_go_on_from_one_writer_to_the_next(path: Path, log: EventLog) -> None:
    assert log.seq == 0
    write(log, 3)
    log.close()
    after = EventLog(path)
    assert after.seq == 3
    write(after, 2)
    after.close()
    assert numbers(path) == [1, 2, 3, 4, 5]


def test_nobody_else_may_read_it(path: Path, log: EventLog) -> None:
    write(log, 1)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_file_is_rotated_and_three_are_kept(path: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventlog, "MAX_BYTES", 1000)
    write(log, 100)
    assert sorted(one.name for one in path.parent.iterdir()) == [path.name, *(f"{path.name}.{n}" for n in (1, 2, 3))]
    assert all(one.stat().st_size <= 1000 for one in path.parent.iterdir())
    assert numbers(path) == list(range(numbers(path)[0], 101))


@pytest.mark.parametrize("moved", [{"": ".1"}, {".1": ".2", "": ".1"}, {".1": ".2"}, {".2": ".3"}])
def test_whoever_dies_in_the_middle_of_a_rotation_loses_nothing(
    path: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch, moved: dict[str, str]
) -> None:
    monkeypatch.setattr(eventlog, "MAX_BYTES", 1000)
    write(log, 25)
    log.close()
    for old, new in moved.items():
        path.with_name(path.name + old).replace(path.with_name(path.name + new))
    after = EventLog(path)
    assert after.seq == 25
    write(after, 3)
    after.close()
    assert numbers(path)[-8:] == list(range(21, 29))


def test_a_torn_line_is_ended_and_its_number_not_given_again(path: Path, log: EventLog) -> None:
    write(log, 2)
    log.close()
    with path.open("ab") as file:
        file.write(record(3)[:40])
    after = EventLog(path)
    write(after, 1)
    after.close()
    assert numbers(path) == [1, 2, 4]


@pytest.mark.parametrize(
    ("data", "last"),
    [
        (b"", 0),
        (b"\n", 0),
        (record(7) + b"\n", 7),
        (record(7), 7),  # only its line end is missing
        (record(7) + b"\n\0\0", 9),
        (record(7) + b"\0\0", 9),
        (record(7) + b'\n{"ty\0', 9),
        (record(7) + b'\n{"ty\n{"type":"tr', 9),
        (b"\0\0\n" + record(7) + b"\n\n", 7),
        (b"\0\0\0", 3),
        (b"nonsense\n", 1),
    ],
)
def test_the_last_number_counts_what_could_not_be_written(data: bytes, last: int) -> None:
    assert last_number(data.split(b"\n")) == last


def test_every_cut_of_the_last_record_leaves_a_log_that_goes_on(path: Path) -> None:
    whole = record(1) + b"\n" + record(2) + b"\n"
    path.parent.mkdir()
    for cut in range(len(record(1)) + 1, len(whole) + 1):
        path.write_bytes(whole[:cut])
        log = EventLog(path)
        write(log, 1)
        log.close()
        found = numbers(path)
        assert found in ([1, 2], [1, 3], [1, 2, 3]), cut
        assert found == [1, 2] if cut == len(record(1)) + 1 else found[-1] == 3


def test_a_log_that_was_deleted_is_begun_again_with_the_next_number(path: Path, log: EventLog) -> None:
    write(log, 2)
    path.unlink()
    write(log, 1)
    assert numbers(path) == [3]


# -- a disk that has no room ----------------------------------------------------------------------------------------------


@pytest.fixture
def limit() -> Iterator[None]:
    """A limit on files that takes a test's bytes, as a full disk does, and can be lifted."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_record_that_does_not_fit_is_a_hole_and_the_next_ones_are_whole(
    path: Path, log: EventLog, limit: None, caplog: pytest.LogCaptureFixture
) -> None:
    write(log, 2)
    room = path.stat().st_size + 30
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    with caplog.at_level(logging.ERROR):
        write(log, 3)
        assert len(caplog.records) == 1  # said once, not for every event
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        write(log, 1)
    assert "cannot write events" in caplog.text
    assert "3 are missing" in caplog.text
    assert numbers(path) == [1, 2, 6]


FULL_DISK = """
import os, subprocess, sys
from pathlib import Path
from protocol.control import Transition
from supervisor.fleet.eventlog import EventLog
folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
def write(log, count):
    for _ in range(count):
        log.append(Transition(seq=log.seq + 1, name="apollo", from_="a", to="b", cause="x" * 100, at=1.0))
ballast, path = folder / "ballast", folder / ".local/state/chorus/events.ndjson"
log = EventLog(path)
write(log, 10)
try:
    with ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
except OSError:
    pass
write(log, 100)
if sys.argv[2] == "dies":
    log = EventLog(path)
    assert log.seq == 110, log.seq
    write(log, 5)
ballast.unlink()
write(log, 10)
chorus = [sys.executable, "-P", "-m", "supervisor.cli", "events", "--json", "-n", "all"]
subprocess.run(chorus, env={"HOME": str(folder), "PYTHONPATH": os.environ["PYTHONPATH"]}, check=True)
"""


@pytest.mark.parametrize("fate", ["lives", "dies"])
def test_on_a_full_disk_every_lost_number_is_missed_also_when_its_writer_dies(tmp_path: Path, fate: str) -> None:
    call = [sys.executable, "-c", FULL_DISK, str(tmp_path), fate]
    root = Path(__file__).resolve().parents[3]
    namespace = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--user", "--map-root-user"])]
    if subprocess.run([*namespace, "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True).returncode:
        reason = "no file system can be mounted here"
        print(reason)
        pytest.skip(reason)
    done = subprocess.run(
        [*namespace, *call], env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, timeout=30
    )
    assert done.returncode == 0, done.stderr.decode()
    told = [json.loads(line) for line in done.stdout.splitlines()]
    found = [one["seq"] for one in told if "seq" in one]
    gaps = [one["missed"] for one in told if one["type"] == "gap"]
    lost = 100 if fate == "lives" else 105
    assert found[:10] == list(range(1, 11))
    assert found[-10:] == list(range(11 + lost, 21 + lost))
    assert found == sorted(set(found))
    assert len(found) < 60  # most of those in between had no room
    assert sum(gaps) == found[-1] - len(found)  # and readers are told


def test_a_place_where_nothing_can_be_written_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    log = EventLog(tmp_path / "state/events.ndjson")
    with caplog.at_level(logging.ERROR):
        write(log, 2)
    assert log.seq == 2
    assert "cannot write events" in caplog.text


# -- a writer that is killed ----------------------------------------------------------------------------------------------

STORM = """
import sys
from pathlib import Path
from protocol.control import Transition
from supervisor.fleet import eventlog
eventlog.MAX_BYTES = 20_000
log = eventlog.EventLog(Path(sys.argv[1]))
while True:
    number = log.seq + 1
    log.append(Transition(seq=number, name="apollo", from_="a", to="b", cause="x" * (number % 200), at=1.0))
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_again_and_again_leaves_no_hole(path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    told = 0
    for _ in range(5):
        storm = subprocess.Popen(
            [sys.executable, "-c", STORM, str(path)],
            env=os.environ | {"PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
        )
        assert storm.stdout
        for _ in range(300):
            number = int(storm.stdout.readline())
            assert number > told
            told = number
        storm.send_signal(signal.SIGKILL)
        rest = storm.communicate()[0].split(b"\n")[:-1]
        told = int(rest[-1]) if rest else told
        found = numbers(path)
        assert found[-1] >= told  # nobody was told of what is not on disk
        assert found == list(range(found[0], found[-1] + 1))


# -- the newest of them ---------------------------------------------------------------------------------------------------


def written(path: Path, *seqs: int, at: float = 1000.0) -> None:
    log = EventLog(path)
    for seq in seqs:
        log.append(Transition(seq=seq, name="apollo", from_="a", to="b", cause="x" * 200, at=at + seq))
    log.close()


def newest(path: Path, most: int = 1000) -> list[int]:
    return [one.seq for one in latest(path, most)]


def test_the_newest_are_told_oldest_first_through_rotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / FILE
    assert newest(path) == []
    monkeypatch.setattr(eventlog, "MAX_BYTES", 1000)
    written(path, *range(1, 8))
    assert path.with_name(f"{FILE}.2").exists()
    assert newest(path) == list(range(1, 8))
    assert newest(path, 3) == [5, 6, 7]


def test_behind_a_hole_they_begin(tmp_path: Path) -> None:
    written(tmp_path / FILE, 1, 2, 5, 6)
    assert newest(tmp_path / FILE) == [5, 6]


def test_those_of_an_earlier_count_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / FILE
    written(path, 1, 2, 3)
    path.rename(path.with_name(f"{FILE}.1"))
    written(path, 1, 2, at=5000.0)
    assert [one.at for one in latest(path, 1000)] == [5001.0, 5002.0]


def test_a_file_that_was_read_under_two_names_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / FILE
    written(path, 1, 2, 3)
    path.rename(path.with_name(f"{FILE}.2"))
    written(path, 4, 5)
    path.with_name(f"{FILE}.1").write_bytes(path.read_bytes())
    assert newest(path) == [1, 2, 3, 4, 5]
