"""A stream's file: written, torn, taken over, and removed."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.gateway.frames import frame
from supervisor.gateway.record import SUFFIX, Head, Record, Restored, load, remove_expired

HEAD = Head(id="s1", kind="chat", created=1000.5, owner="key", retry_key="again", fingerprint="f00d")
FRAMES = [frame("token", b'{"content":"%d"}' % number, f"e1-{number}") for number in range(3)]


def written(folder: Path, frames: list[bytes] = FRAMES, *, ended: float | None = 2000.5, failed: bool = False) -> Path:
    """A file as a gateway leaves it."""
    record = Record.create(folder, HEAD, "e1")
    record.write(frames)
    if ended is None:
        record.close()
    else:
        record.end(ended, failed=failed)
    return record.path


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that takes no more than so many bytes of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


# -- written and read ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failed", [False, True])
def test_what_was_written_is_read(tmp_path: Path, failed: bool) -> None:
    path = written(tmp_path, failed=failed)
    size = path.stat().st_size
    assert load(path) == Restored(head=HEAD, epochs={"e1": 0}, frames=FRAMES, ended=2000.5, failed=failed, size=size)


def test_a_stream_that_is_not_over_has_no_end(tmp_path: Path) -> None:
    restored = load(written(tmp_path, ended=None))
    assert restored is not None
    assert (restored.ended, restored.failed, restored.frames) == (None, False, FRAMES)


def test_the_file_is_the_stream_as_a_browser_reads_it(tmp_path: Path) -> None:
    blocks = written(tmp_path).read_bytes().removesuffix(b"\n\n").split(b"\n\n")
    assert [block + b"\n\n" for block in blocks if not block.startswith(b":")] == FRAMES
    assert all(b"\n" not in block for block in blocks if block.startswith(b":"))


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = written(tmp_path / "streams")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@given(contents=st.lists(st.binary(max_size=40), max_size=20))
def test_any_events_come_back_whole(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]) -> None:
    frames = [frame("token", one.replace(b"\n", b""), f"e1-{number}") for number, one in enumerate(contents)]
    restored = load(written(tmp_path_factory.mktemp("any"), frames))
    assert restored is not None
    assert restored.frames == frames


# -- torn -------------------------------------------------------------------------------------------------------------------


def test_a_file_that_was_cut_anywhere_is_read_up_to_its_last_whole_event(tmp_path: Path) -> None:
    whole = written(tmp_path).read_bytes()
    torn, readable = tmp_path / f"torn{SUFFIX}", 0
    for size in range(len(whole)):
        torn.write_bytes(whole[:size])
        restored = load(torn)
        if restored is None:
            assert readable == 0, f"cut at {size} it is not read, and cut earlier it was"
            continue
        readable += 1
        assert restored.head == HEAD
        assert restored.frames == [one for one in FRAMES if one in whole[:size]]
        assert restored.ended is None
        assert restored.size <= size
        assert whole[: restored.size].endswith(b"\n\n")
    assert readable


@given(
    data=st.binary(max_size=200) | st.lists(st.sampled_from([b": ", b"{}", b"\n\n", b"\n", b"data: x"])).map(b"".join)
)
def test_a_file_of_anything_else_is_none_of_ours(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("foreign") / f"x{SUFFIX}"
    path.write_bytes(data)
    assert load(path) is None


@given(at=st.integers(0), junk=st.binary(min_size=1, max_size=20))
def test_junk_in_the_middle_of_a_file_never_breaks_its_reader(
    tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes
) -> None:
    path = written(tmp_path_factory.mktemp("junk"))
    data = path.read_bytes()
    at %= len(data)
    path.write_bytes(data[:at] + junk + data[at:])
    load(path)


def test_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert load(tmp_path / f"gone{SUFFIX}") is None


# -- taken over ---------------------------------------------------------------------------------------------------------------


def test_while_its_writer_lives_a_file_cannot_be_taken_over(tmp_path: Path) -> None:
    record = Record.create(tmp_path, HEAD, "e1")
    assert Record.take_over(record.path) is None
    assert is_locked(record.path)
    record.close()
    assert not is_locked(record.path)


def test_a_writer_that_was_killed_has_let_go(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from supervisor.gateway.record import Head, Record\n"
        "record = Record.create(Path(sys.argv[1]), Head(id='s1', kind='chat', created=1.0), 'e1')\n"
        "record.write([b'data: 1\\n\\n']); print('written', flush=True); sys.stdin.read()"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    with writer.stdin, writer.stdout:
        writer.stdout.readline()
        path = tmp_path / f"s1{SUFFIX}"
        assert Record.take_over(path) is None
        writer.kill()
        writer.wait()
        taken = Record.take_over(path)
    assert taken is not None
    taken.close()


def test_whoever_takes_over_goes_on_behind_the_last_whole_event(tmp_path: Path) -> None:
    path = written(tmp_path, ended=None)
    with path.open("ab") as file:
        file.write(b"id: e1-3\nevent: token\nda")
    torn = load(path)
    record = Record.take_over(path)
    assert torn is not None
    assert record is not None
    record.begin("e2", torn)
    record.write([frame("error", b"{}", "e2-3")])
    record.end(3000.0, failed=True)
    restored = load(path)
    assert restored is not None
    assert restored.epochs == {"e1": 0, "e2": 3}
    assert restored.frames == [*FRAMES, frame("error", b"{}", "e2-3")]
    assert (restored.ended, restored.failed) == (3000.0, True)


def test_what_cannot_be_opened_cannot_be_taken_over(tmp_path: Path) -> None:
    assert Record.take_over(tmp_path / f"gone{SUFFIX}") is None


# -- a disk that fails --------------------------------------------------------------------------------------------------------


def test_where_the_disk_gives_no_file_nothing_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "streams").write_text("in the way")
    record = Record.create(tmp_path / "streams", HEAD, "e1")
    record.write(FRAMES)
    record.end(2000.0, failed=False)
    assert not record.is_whole
    assert caplog.text.count("s1.sse is not kept on disk") == 1
    assert load(record.path) is None


@pytest.mark.parametrize("room", [0, 1, 57, 250])
def test_a_full_disk_is_said_once_and_what_is_there_can_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, room: int
) -> None:
    record = Record.create(tmp_path, HEAD, "e1")
    with largest_file(record.path.stat().st_size + room):
        for one in FRAMES * 3:
            record.write([one])
        record.end(2000.0, failed=False)
    assert not record.is_whole
    assert caplog.text.count("is not kept on disk any further") == 1
    restored = load(record.path)
    assert restored is not None
    assert restored.frames == (FRAMES * 3)[: room // len(FRAMES[0])]
    assert restored.ended is None


def test_an_event_that_went_to_disk_in_part_is_noticed_at_once(tmp_path: Path) -> None:
    record = Record.create(tmp_path, HEAD, "e1")
    with largest_file(record.path.stat().st_size + len(FRAMES[0]) - 1):
        record.write(FRAMES[:1])
    assert not record.is_whole
    record.close()


def test_a_disk_that_is_full_from_the_first_byte_on_leaves_nothing_that_is_taken_for_a_stream(tmp_path: Path) -> None:
    with largest_file(0):
        record = Record.create(tmp_path, HEAD, "e1")
    assert not record.is_whole
    record.close()
    assert load(record.path) is None


# -- removed ------------------------------------------------------------------------------------------------------------------


def test_what_nobody_wrote_to_for_long_is_removed_unless_its_writer_lives(tmp_path: Path) -> None:
    old, fresh = written(tmp_path / "a"), written(tmp_path / "b")
    living = Record.create(tmp_path / "c", HEAD, "e1")
    past = time.time() - 100
    for path in (old, living.path):
        os.utime(path, (past, past))
    for folder in ("a", "b", "c"):
        remove_expired(tmp_path / folder, after=50)
    assert [path.exists() for path in (old, fresh, living.path)] == [False, True, True]
    living.close()
