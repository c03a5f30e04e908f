"""What follows from another configuration, without a supervisor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from protocol.control import Change, Plan
from supervisor.config import Loaded, load, resolve, supervision
from supervisor.fleet.calls import fingerprint
from supervisor.fleet.plan import Member, changed, in_the_way, plan
from supervisor.roster import children

BASE = 'port_base = 20000\nroster = ["apollo", "athena"]\n'


def read(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> Loaded:
    file = folder / "chorus.toml"
    file.write_text(text)
    return load({}, file, {"HOME": str(folder)} | dict(environ or {}))


def members(loaded: Loaded, **said: Any) -> dict[str, Member]:
    """The team as it is kept: everybody runs with this configuration."""
    found = {config.name: config for config in children(loaded)}
    return {name: Member(config, supervision(loaded, name), running=config, **said) for name, config in found.items()}


def planned(folder: Path, before: str, after: str, **said: Any) -> Plan:
    old, new = read(folder, before), read(folder, after)
    return plan(members(old, **said), members(new), old.settings, new.settings)


def actions(found: Plan) -> dict[str, str]:
    return {change.name: change.action for change in found.specialists}


def test_the_same_configuration_changes_nothing(tmp_path: Path) -> None:
    found = planned(tmp_path, BASE, BASE)
    specialists = [Change("apollo", "keep"), Change("athena", "keep")]
    assert found == Plan(specialists=specialists, gateway=Change("gateway", "keep"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[specialists.apollo]\nport = 20100", ["port 20012 -> 20100"]),
        ("[specialists.apollo]\npersona = 'Another.'", ["persona"]),
        ("[specialists.apollo]\nmodel = 'tiny'", ["model default -> tiny"]),
        ("[specialists.apollo]\noptions = { temperature = 0.2 }", ["options.temperature default -> 0.2"]),
        ("[specialists.apollo]\ncommand = ['./other']", ["command"]),
    ],
)
def test_what_one_is_told_restarts_that_one(tmp_path: Path, text: str, why: list[str]) -> None:
    found = planned(tmp_path, BASE, BASE + text)
    assert found.specialists[0].action == "restart"
    assert [words for words in found.specialists[0].why if "command_dir" not in words] == why
    assert found.specialists[1] == Change("athena", "keep")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[backend]\nmodel = 'tiny'", ["model default -> tiny"]),
        ("[backend]\nkind = 'builtin'\npace = 20.0", ["backend.kind auto -> builtin", "backend.pace 60 -> 20"]),
        ("[backend.options]\nnum_ctx = 8192", ["backend.options.num_ctx default -> 8192"]),
        ("[limits]\nsilence = 30.0", ["limits.silence 60 -> 30"]),
        ("[history]\nretention_days = 7.0", ["history.retention_days 90 -> 7"]),
        ("[backend]\nurl = 'http://me:secret@127.0.0.1:1'", ["backend.url"]),
    ],
)
def test_what_all_are_told_restarts_all(tmp_path: Path, text: str, why: list[str]) -> None:
    found = planned(tmp_path, BASE, BASE + text)
    assert actions(found) == {"apollo": "restart", "athena": "restart"}
    assert found.specialists[0].why == why
    assert found.live == found.later == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[supervision]\nintensity = 3", ["intensity 5 -> 3"]),
        ("[supervision]\ngrace = 30.0", ["grace 10 -> 30"]),
        ("[supervision]\nmax_rss_bytes = 536870912", ["max_rss_bytes default -> 536870912"]),
        ("[supervision]\nrestart = 'never'", ["restart always -> never"]),
    ],
)
def test_how_they_are_kept_changes_without_a_restart(tmp_path: Path, text: str, why: list[str]) -> None:
    found = planned(tmp_path, BASE, BASE + text)
    assert found.specialists == [Change("apollo", "live", why), Change("athena", "live", why)]


def test_a_process_that_only_has_another_grace_is_not_replaced_by_the_next_supervisor_either(tmp_path: Path) -> None:
    before = resolve(read(tmp_path, BASE), "apollo")
    after = resolve(read(tmp_path, BASE + "[supervision]\ngrace = 30.0"), "apollo")
    assert before != after
    assert changed(before, after) == []
    assert fingerprint(before) == fingerprint(after)


def test_a_model_for_all_is_nothing_to_one_that_has_its_own(tmp_path: Path) -> None:
    own = "[specialists.apollo]\nmodel = 'mine'\n"
    found = planned(tmp_path, BASE + own, BASE + own + "[backend]\nmodel = 'tiny'\nparallel = 2\n")
    assert actions(found) == {"apollo": "keep", "athena": "restart"}


def test_what_is_said_of_one_goes_over_what_is_said_of_all(tmp_path: Path) -> None:
    team = "[supervision]\nmax_rss_bytes = 536870912\nrestart = 'on_failure'\n"
    loaded = read(tmp_path, BASE + team + "[specialists.apollo]\nmax_rss_bytes = 1073741824\nrestart = 'never'")
    apollo, athena = supervision(loaded, "apollo"), supervision(loaded, "athena")
    assert (apollo.max_rss_bytes, apollo.restart) == (1073741824, "never")
    assert (athena.max_rss_bytes, athena.restart) == (536870912, "on_failure")


def test_who_comes_and_who_goes(tmp_path: Path) -> None:
    found = planned(tmp_path, BASE, BASE.replace('"athena"', '"zeus"') + "[specialists.zeus]\nport = 20200")
    assert found.specialists == [
        Change("apollo", "keep"),
        Change("zeus", "add", ["port 20200"]),
        Change("athena", "remove"),
    ]


def test_settings_of_the_whole_team_are_named_and_say_when_they_count(tmp_path: Path) -> None:
    text = "[supervision]\non_supervisor_exit = 'stop'\nrestarter = 'systemd'\n"
    found = planned(tmp_path, BASE, BASE + text + "[cost]\nprompt = 1.5\n[roles]\nqa = 'athena'")
    assert set(actions(found).values()) == {"keep"}
    assert sorted(found.live) == ["cost.prompt 0 -> 1.5", "roles.qa", "supervision.on_supervisor_exit keep -> stop"]
    assert found.later == ["supervision.restarter"]


def test_a_key_is_named_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "key"
    backend = "[backend]\nkind = 'openai_compatible'\napi_key_file = 'key'\n"
    file.write_text("sk-old")
    old = read(tmp_path, BASE + backend)
    file.write_text("sk-new")
    new = read(tmp_path, BASE + backend)
    found = plan(members(old), members(new), old.settings, new.settings)
    assert found.specialists[0] == Change("apollo", "restart", ["backend.api_key_file"])
    assert "sk-" not in str(found)


@pytest.mark.parametrize("wanted", ["down", "drained"])
def test_one_that_an_operator_stopped_has_it_at_its_next_start(tmp_path: Path, wanted: str) -> None:
    found = planned(tmp_path, BASE, BASE + "[limits]\nsilence = 30.0", wanted=wanted)
    assert actions(found) == {"apollo": "live", "athena": "live"}


def test_one_that_has_failed_is_tried_again(tmp_path: Path) -> None:
    assert actions(planned(tmp_path, BASE, BASE, has_failed=True)) == {"apollo": "retry", "athena": "retry"}


def test_one_that_is_kept_down_by_its_policy_stays_down_unless_the_policy_changes(tmp_path: Path) -> None:
    never, other = BASE + "[supervision]\nrestart = 'never'\n", "period = 31.0\n"
    kept_down = {"has_failed": True, "is_kept_down": True}
    assert actions(planned(tmp_path, never, never + other, **kept_down)) == {"apollo": "live", "athena": "live"}
    assert actions(planned(tmp_path, never, BASE, **kept_down)) == {"apollo": "retry", "athena": "retry"}


def test_what_runs_with_an_older_configuration_is_compared_with_that(tmp_path: Path) -> None:
    old, new = read(tmp_path, BASE), read(tmp_path, BASE + "[specialists.apollo]\nport = 20100")
    now = members(new)
    now["apollo"] = replace(now["apollo"], running=resolve(old, "apollo"))  # its new port was not to be had then
    found = plan(now, members(new), new.settings, new.settings)
    assert found.specialists[0] == Change("apollo", "restart", ["port 20012 -> 20100"])


def test_one_is_in_the_way_who_holds_the_place_that_another_moves_to(tmp_path: Path) -> None:
    now = members(read(tmp_path, BASE))
    apollo, athena = now["apollo"].config, now["athena"].config
    assert not in_the_way("apollo", apollo, now)
    assert not in_the_way("apollo", replace(apollo, port=20100), now)
    assert in_the_way("apollo", replace(apollo, port=athena.port), now)
    assert not in_the_way("apollo", replace(apollo, addresses=["::1"]), now)  # a part of its own: the rest is let go
    assert in_the_way("apollo", replace(apollo, addresses=["0.0.0.0"]), now)  # every address: its own among them
    now["athena"] = replace(now["athena"], wanted="down", running=None)
    assert not in_the_way("apollo", replace(apollo, port=athena.port), now)
