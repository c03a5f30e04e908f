"""`chorus logs`: records out of files that are written, rotated, capped and cut while they are read."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

import pytest
from ports import free_port_base
from team import Team, command
from user_manager import UserManager

from daemon.logs import OneLine
from supervisor import records
from supervisor.cli.journald import Unit, unit_of
from supervisor.cli.logs import as_text
from supervisor.cli.moment import since
from supervisor.config import load
from supervisor.fleet.marks import RAW_OUTPUT_LIMIT, _cap
from supervisor.records import Record, as_json, merged, parse, recent
from supervisor.tail import LATE_LOOKS, Tail

NOON = datetime(2026, 11, 20, 12).timestamp()


def stamp(seconds: float) -> str:
    return records.stamped(NOON + seconds)


def news(tail: Tail) -> list[bytes]:
    return [line for lines, _ in tail.news() for line in lines]


def existing(tail: Tail) -> list[bytes]:
    """What there is, oldest first."""
    return [line for lines, _ in reversed(list(tail.existing())) for line in lines]


# -- records ------------------------------------------------------------------------------------------------------------


def test_a_line_becomes_a_record_with_its_line_ends_back() -> None:
    found = parse(f"{stamp(1.5)} ERROR apollo: first\\nsecond", "apollo", 0.0)
    assert found == Record(NOON + 1.5, "ERROR", "apollo", "first\nsecond")


@pytest.mark.parametrize("line", ["half a li", "", "2026-99-99T99:99:99.000 INFO apollo: no such day"])
def test_a_line_of_no_known_form_is_kept_with_the_time_before_it(line: str) -> None:
    assert parse(line, "apollo", 7.0) == Record(7.0, "OUTPUT", "apollo", line)


def test_every_line_of_a_record_has_the_prefix() -> None:
    text = as_text(Record(NOON, "INFO", "apollo", "one\ntwo"), 10, painted=False)
    assert text == f"apollo     | {stamp(0)} INFO one\napollo     |   two"


def test_on_a_terminal_the_name_is_coloured_and_control_bytes_are_not_let_through() -> None:
    text = as_text(Record(NOON, "WARNING", "apollo", "\x1b]0;evil\x07"), 6, 214, painted=True)
    assert text.startswith("\x1b[38;5;214mapollo |\x1b[0m ")
    assert "\x1b]" not in text
    assert "\ufffd]0;evil\ufffd" in text


def test_json_has_four_fields_and_a_time_with_its_zone() -> None:
    told = json.loads(as_json(Record(NOON + 0.25, "INFO", "apollo", "a\nb")))
    assert list(told) == ["time", "level", "name", "message"]
    assert datetime.fromisoformat(told["time"]).timestamp() == NOON + 0.25
    assert told["message"] == "a\nb"


@pytest.mark.parametrize(
    ("text", "ago"),
    [("5m", 300.0), ("2h", 7200.0), ("1h30m", 5400.0), ("1d", 86400.0), ("90s", 90.0), ("2026-11-20T11:00", 3600.0)],
)
def test_since_is_a_duration_or_a_time(text: str, ago: float) -> None:
    assert since(text, datetime.fromtimestamp(NOON)) == NOON - ago


@pytest.mark.parametrize("text", ["", "5", "m", "yesterday", "5m2h", "-5m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        since(text, datetime.fromtimestamp(NOON))


def test_records_of_several_are_merged_by_time() -> None:
    ours = [Record(1.0, "INFO", "a", ""), Record(4.0, "INFO", "a", "")]
    theirs = [Record(2.0, "INFO", "b", ""), Record(3.0, "INFO", "b", "")]
    assert [record.at for record in merged([ours, theirs])] == [1.0, 2.0, 3.0, 4.0]


# -- files --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "apollo.log"


@pytest.fixture
def tail(log: Path) -> Iterator[Tail]:
    tail = Tail(log)
    yield tail
    tail.close()


def test_rotated_files_come_first(log: Path, tail: Tail) -> None:
    for end, text in {".3": "1\n", ".2": "2\n3\n", ".1": "4\n", "": "5\n"}.items():
        log.with_name(f"apollo.log{end}").write_text(text)
    assert existing(tail) == [b"1", b"2", b"3", b"4", b"5"]
    assert news(tail) == []


def test_a_line_is_told_when_it_is_whole(log: Path, tail: Tail) -> None:
    log.write_text("one\ntw")
    assert existing(tail) == [b"one"]
    with log.open("a") as file:
        file.write("o\nthree\n")
    assert news(tail) == [b"two", b"three"]


def test_a_file_that_appears_later_is_followed(log: Path, tail: Tail) -> None:
    assert existing(tail) == []
    assert news(tail) == []
    log.write_text("one\n")
    assert news(tail) == [b"one"]
    assert news(tail) == []


def test_a_line_written_to_a_file_after_its_rotation_is_not_lost(log: Path, tail: Tail) -> None:
    log.write_text("one\n")
    assert existing(tail) == [b"one"]
    late = log.open("a")  # as the supervisor's mark, which opened the file just before
    log.rename(log.with_name("apollo.log.1"))
    log.write_text("three\n")
    assert news(tail) == [b"three"]
    late.write("two\n")
    late.close()
    assert [news(tail) for _ in range(LATE_LOOKS + 1)] == [[b"two"], *[[]] * LATE_LOOKS]


def test_several_rotations_between_two_looks_lose_nothing(log: Path, tail: Tail) -> None:
    log.write_text("one\n")
    assert existing(tail) == [b"one"]
    with log.open("a") as file:
        file.write("two\n")
    log.rename(log.with_name("apollo.log.2"))
    log.with_name("apollo.log.1").write_text("three\n")
    log.write_text("four\n")
    assert news(tail) == [b"two", b"three", b"four"]
    assert news(tail) == []


def test_files_rotated_before_we_came_are_not_told_again_when_the_log_is_deleted(log: Path, tail: Tail) -> None:
    log.with_name("apollo.log.1").write_text("old\n")
    log.write_text("one\n")
    assert existing(tail) == [b"old", b"one"]
    log.unlink()
    log.write_text("two\n")
    assert news(tail) == [b"two"]


def test_raw_output_that_the_supervisor_caps_is_neither_lost_nor_repeated(tmp_path: Path) -> None:
    raw = tmp_path / "apollo.out"
    lines = [f"line {number:08d}".encode() for number in range(RAW_OUTPUT_LIMIT // 12)]
    raw.write_bytes(b"\n".join(lines) + b"\n")
    tail = Tail(raw)
    assert existing(tail) == lines
    with raw.open("ab") as file:
        file.write(b"before the cap\n")
    _cap(raw)
    assert raw.stat().st_size <= RAW_OUTPUT_LIMIT // 2
    with raw.open("ab") as file:
        file.write(b"after the cap\n")
    found = [*news(tail), *news(tail)]
    assert found == [b"before the cap", b"after the cap"]
    tail.close()


def test_a_file_that_was_emptied_is_read_from_its_beginning(log: Path, tail: Tail) -> None:
    log.write_text("one\ntwo\n")
    assert existing(tail) == [b"one", b"two"]
    log.write_text("")
    assert news(tail) == []
    log.write_text("3\n")
    assert [*news(tail), *news(tail)] == [b"3"]


def test_a_writer_that_rotates_often_is_followed_without_loss_or_duplicates(log: Path, tail: Tail) -> None:
    handler = RotatingFileHandler(log, maxBytes=2000, backupCount=3)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s apollo: %(message)s"))
    logger = logging.getLogger("test_logs.apollo")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    dice = random.Random(7)
    told: list[bytes] = []
    written = 0
    for number in range(20):
        logger.info("%d", number)
    told += existing(tail)
    written = 20
    for _ in range(300):
        for _ in range(dice.randrange(60)):  # up to two rotations between two looks
            logger.info("%d", written)
            written += 1
        told += news(tail)
    handler.close()
    assert [int(line.rpartition(b" ")[2]) for line in told] == list(range(written))


def test_only_the_last_records_are_parsed(log: Path, tail: Tail) -> None:
    log.with_name("apollo.log.1").write_text("".join(f"{stamp(at)} INFO apollo: {at}\n" for at in range(5)))
    log.write_text("".join(f"{stamp(at)} INFO apollo: {at}\n" for at in range(5, 8)))
    found = recent("apollo", tail, 4, 0.0, keep_open=False)
    assert [record.message for record in found] == ["4", "5", "6", "7"]


def test_no_record_is_older_than_was_asked_for(log: Path, tail: Tail) -> None:
    log.write_text("".join(f"{stamp(at)} INFO apollo: {at}\n" for at in range(8)))
    found = recent("apollo", tail, None, NOON + 5, keep_open=False)
    assert [record.message for record in found] == ["5", "6", "7"]


# -- the journal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "line"),
    [
        ("0::/system.slice/chorus.service\n", "journalctl --unit chorus.service -f"),
        ("0::/user.slice/user@7.service/app.slice/chorus.service\n", "journalctl --user-unit chorus.service -f"),
        ("4:memory:/\n1:name=systemd:/system.slice/my.service\n0::/\n", "journalctl --unit my.service -f"),
    ],
)
def test_a_supervisor_under_systemd_is_read_in_the_journal(tmp_path: Path, group: str, line: str) -> None:
    loaded = load({}, None, {"HOME": str(tmp_path)})
    loaded.dirs.state.mkdir(parents=True)
    (loaded.dirs.state / "supervisor.lock").write_text("42\n")
    process = tmp_path / "proc/42"
    (process / "fd").mkdir(parents=True)
    (process / "environ").write_bytes(b"HOME=/\0JOURNAL_STREAM=8:99\0")
    (process / "cgroup").write_text(group)
    (process / "fd/2").symlink_to("socket:[99]")
    unit = unit_of(loaded, tmp_path / "proc")
    assert unit is not None
    assert unit.line == line
    (process / "fd/2").unlink()
    (process / "fd/2").symlink_to("/somewhere/supervisor.out")
    assert unit_of(loaded, tmp_path / "proc") is None


def test_the_journal_of_a_supervisor_that_is_gone_is_that_of_the_unit_that_is_installed(tmp_path: Path) -> None:
    loaded = load({}, None, {"HOME": str(tmp_path)})
    nowhere = tmp_path / "etc/chorus.service"
    assert unit_of(loaded, tmp_path / "proc", nowhere) is None
    (tmp_path / ".config/systemd/user").mkdir(parents=True)
    (tmp_path / ".config/systemd/user/chorus.service").touch()
    assert unit_of(loaded, tmp_path / "proc", nowhere) == Unit("chorus.service", is_users=True)


def test_who_has_no_team_is_shown_the_machines_journal(tmp_path: Path) -> None:
    loaded = load({}, None, {"HOME": str(tmp_path)})
    system = tmp_path / "chorus.service"
    system.touch()
    assert unit_of(loaded, tmp_path / "proc", system) == Unit("chorus.service", is_users=False)
    loaded.dirs.state.mkdir(parents=True)
    (loaded.dirs.state / "supervisor.lock").write_text("42\n")
    assert unit_of(loaded, tmp_path / "proc", system) is None


def test_what_a_supervisor_and_systemd_write_to_the_journal_is_shown_across_both_restarts(
    user_manager: UserManager,
) -> None:
    env = {"CHORUS_PORT_BASE": str(free_port_base(["apollo"])), "CHORUS_ROSTER": "apollo", "CHORUS_BACKEND": "builtin"}
    env["CHORUS_GATEWAY"] = "false"

    def chorus(*args: str) -> str:
        done = user_manager.run(*command(*args), env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    chorus("service", "install", "--user")
    following = subprocess.Popen(
        user_manager.command(*command("logs", "-f", "-n", "all")), env=user_manager.env | env, stdout=subprocess.PIPE
    )
    read_until(following, b"systemd: Started chorus.service")
    os.kill(user_manager.main_pid("chorus.service"), signal.SIGKILL)
    seen = read_until(following, b"systemd: Started chorus.service")
    assert b"systemd: chorus.service: Main process exited, code=killed, status=9/KILL" in seen
    user_manager.systemctl("stop", "chorus.service")
    read_until(following, b"the team is down")
    following.send_signal(signal.SIGINT)
    following.communicate(timeout=10)

    told = [json.loads(line) for line in chorus("logs", "--json", "-n", "all").splitlines()]
    assert {one["name"] for one in told} >= {"apollo", "supervisor"}
    assert [one["time"] for one in told] == sorted(one["time"] for one in told)
    assert all(one["name"] == "apollo" for one in map(json.loads, chorus("logs", "--json", "apollo").splitlines()))


# -- the command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with Team.start(tmp_path_factory.mktemp("logs"), roster=["apollo", "athena"]) as team:
        yield team


def folder(team: Team) -> Path:
    return team.home / ".local/state/chorus/logs"


def read_until(process: subprocess.Popen[bytes], wanted: bytes) -> bytes:
    assert process.stdout is not None
    seen = b""
    deadline = time.monotonic() + 20
    os.set_blocking(process.stdout.fileno(), False)
    while wanted not in seen:
        assert time.monotonic() < deadline, seen
        seen += process.stdout.read() or b""
        time.sleep(0.02)
    return seen


def test_logs_are_merged_over_names_and_the_last_n_are_shown(team: Team) -> None:
    done = team.run("logs", "-n", "all")
    assert done.returncode == 0
    assert {line.split(" | ")[0].strip() for line in done.stdout.splitlines()} >= {"apollo", "athena"}
    stamps = re.findall(r"\| (\d{4}-\S+)", done.stdout)
    assert stamps == sorted(stamps)
    assert len(team.run("logs", "-n", "2").stdout.splitlines()) == 2
    assert team.run("logs", "-n", "0").stdout == ""


def test_aliases_and_globs_are_taken_and_a_stranger_is_exit_4(team: Team) -> None:
    assert all(line.startswith("apollo | ") for line in team.run("logs", "Apollo-AI").stdout.splitlines())
    assert team.run("logs", "a*").stdout.count("listening") == 2
    stranger = team.run("logs", "appollo")
    assert (stranger.returncode, stranger.stdout) == (4, "")
    assert "did you mean apollo" in stranger.stderr


def test_following_goes_on_across_a_restart_and_ends_with_130(team: Team) -> None:
    process = team.popen("logs", "-f", "-n", "1", "apollo")
    read_until(process, b"apollo | ")
    team.run("restart", "apollo")
    seen = read_until(process, b"listening on port")
    assert b"asked to restart" in seen
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130


def test_a_traceback_in_the_raw_output_is_shown(team: Team) -> None:
    with (folder(team) / "athena.out").open("a") as raw:
        raw.write("Traceback (most recent call last):\n  boom\n")
    assert "Traceback (most recent call last):" in team.run("logs", "athena").stdout
    (folder(team) / "athena.out").write_text("")


def test_following_ends_when_nobody_reads(team: Team) -> None:
    process = team.popen("logs", "-f", "-n", "1")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=10) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_logs_work_without_a_supervisor(tmp_path: Path) -> None:
    with Team.prepare(tmp_path) as team:
        nothing = team.run("logs")
        assert (nothing.returncode, nothing.stdout) == (0, "")
        assert "nothing was logged yet" in nothing.stderr
        folder(team).mkdir(parents=True)
        (folder(team) / "apollo.log").write_text(f"{stamp(0)} INFO apollo: still readable\n")
        told = json.loads(team.run("logs", "--json").stdout)
        assert (told["name"], told["message"]) == ("apollo", "still readable")
