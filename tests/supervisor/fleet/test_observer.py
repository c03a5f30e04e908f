"""What an observer makes of what it sees, without a systemd; with one, see tests/supervisor/test_observing.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from keeping import BACKEND, specialist

from protocol.control import SpecialistStatus
from protocol.settings import Supervision
from supervisor.fleet.inbox import Seen
from supervisor.fleet.lifecycle import State, Wanted
from supervisor.fleet.observer import Observer
from supervisor.fleet.registry import Registry
from supervisor.fleet.systemctl import Systemctl, Unit

INACTIVE = Unit("inactive", is_busy=False, pid=None, restarts=0, result="success", socket="inactive", socket_result="")


def observer(folder: Path) -> Observer:
    config = specialist(folder)
    entry = SpecialistStatus(
        name="apollo", ai_id="apollo-ci", host="127.0.0.1", port=config.port, state="stopped", wanted="up"
    )
    registry = Registry(folder / "registry.json", [entry], BACKEND, "systemd")
    return Observer(config, Supervision(), Systemctl("--user", folder / "exits"), registry, lambda _name, _text: None)


async def test_what_was_seen_before_an_order_is_no_answer_to_it(tmp_path: Path) -> None:
    one = observer(tmp_path)
    assert one.wanted is Wanted.UP
    one._lookout.ordered()
    await one._handle(Seen(INACTIVE, orders=0))
    assert one.state is State.STOPPED
    await one._handle(Seen(INACTIVE, orders=1))
    assert one.state is State.FAILED
    assert one.registry["apollo"].last_error == "systemd has not started it"
    one.inbox.close()


@pytest.mark.parametrize(
    ("written", "code", "signal", "result"),
    [
        ("exited 3 exit-code\n", 3, None, "exit-code"),
        ("killed KILL signal\n", None, 9, "signal"),
        ("dumped ABRT watchdog\n", None, 6, "watchdog"),
        ("killed RTMIN+3 signal\n", None, None, "signal"),
    ],
)
def test_how_a_process_ended_is_read_from_what_its_unit_wrote(
    tmp_path: Path, written: str, code: int | None, signal: int | None, result: str
) -> None:
    (tmp_path / "apollo").write_text(written)
    found = Systemctl("--user", tmp_path).ending("apollo")
    assert found is not None
    assert (found[0].code, found[0].signal, found[1]) == (code, signal, result)
    assert found[0].at == (tmp_path / "apollo").stat().st_mtime


@pytest.mark.parametrize("written", ["", "exited 3\n", "exited three exit-code\n"])
def test_what_was_written_by_halves_is_nothing(tmp_path: Path, written: str) -> None:
    (tmp_path / "apollo").write_text(written)
    assert Systemctl("--user", tmp_path).ending("apollo") is None
    assert Systemctl("--user", tmp_path).ending("athena") is None
