"""`chorus doctor`: facts and remedies, for a team that is well, one that is not, and none at all."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lookalikes.ollama import OllamaLookalike
from ports import free_port
from team import Team

from protocol.control import BackendStatus, GatewayStatus, SpecialistStatus, StatusReport, SupervisorStatus
from supervisor.checkup import machine, models, team
from supervisor.checkup.check import Check
from supervisor.checkup.model_server import Inventory, Model
from supervisor.checkup.ports import Claim, ephemeral, parse_spans, ports, spans
from supervisor.checkup.team import Heard
from supervisor.config import Loaded, load, resolve

VERSION = "0.0.1"


def loaded_in(home: Path, **flags: Any) -> Loaded:
    return load({key.replace("__", "."): value for key, value in flags.items()}, None, {"HOME": str(home)})


def by_name(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in told["checks"]}


# -- ports --------------------------------------------------------------------------------------------------------------


def test_ports_are_written_as_the_kernel_writes_them() -> None:
    assert spans([45001, 45000, 45080, 45002]) == "45000-45002,45080"
    assert parse_spans("45000-45002,45080") == {45000, 45001, 45002, 45080}
    assert parse_spans("") == set()


@pytest.mark.parametrize(
    ("wanted", "reserved", "state"),
    [([20000], "", "ok"), ([45000], "", "warn"), ([45000], "45000-45009", "ok"), ([45000, 45010], "45000", "warn")],
)
def test_ports_in_the_ephemeral_range_are_to_be_reserved(
    tmp_path: Path, wanted: list[int], reserved: str, state: str
) -> None:
    (tmp_path / "range").write_text("32768\t60999\n")
    (tmp_path / "reserved").write_text(f"{reserved}\n")
    found = ephemeral(wanted, tmp_path / "range", tmp_path / "reserved")
    assert found is not None
    assert found.state == state


def test_the_remedy_keeps_what_is_reserved_already(tmp_path: Path) -> None:
    (tmp_path / "range").write_text("32768 60999")
    (tmp_path / "reserved").write_text("50000")
    found = ephemeral([45001, 45000], tmp_path / "range", tmp_path / "reserved")
    assert found == Check(
        "ports.ephemeral",
        "warn",
        "2 ports lie in the range of outgoing connections, 32768-60999: any program may be given one of them",
        "sudo sysctl -w net.ipv4.ip_local_reserved_ports=45000-45001,50000",
    )


def test_a_system_that_does_not_say_gets_no_line(tmp_path: Path) -> None:
    assert ephemeral([45000], tmp_path / "none", tmp_path / "none") is None


def test_a_port_of_somebody_else_is_named_with_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        claims = [
            Claim("apollo", port, ["127.0.0.1"], "specialists.apollo.port"),
            Claim("athena", free_port(), ["127.0.0.1", "::1"], "specialists.athena.port"),
        ]
        held, free = ports(claims, set(), set())
        assert (held.name, held.state) == ("port.apollo", "fail")
        assert f"pid {os.getpid()} " in held.fact
        assert (free.name, free.fact) == ("ports.free", f"free: {claims[1].port}")
        [ours] = ports(claims[:1], {os.getpid()}, set())
        assert (ours.name, ours.state) == ("ports.held", "ok")


# -- the machine --------------------------------------------------------------------------------------------------------


def test_the_kernel_is_asked_about_a_connection_of_our_own() -> None:
    assert machine.kernel_look().state == "ok"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "no proxy is set"),
        ({"HTTP_PROXY": "http://p:1"}, "localhost is not spared"),
        ({"https_proxy": "http://p:1", "NO_PROXY": "localhost, 127.0.0.1"}, "localhost is spared"),
        ({"http_proxy": "http://p:1", "no_proxy": "*"}, "localhost is spared"),
    ],
)
def test_a_proxy_is_told_and_is_no_failure(environ: dict[str, str], said: str) -> None:
    found = machine.proxies(environ, "http://127.0.0.1:11434")
    assert found.state == "ok"
    assert said in found.fact


def test_a_clock_that_went_back_is_seen_by_our_own_files(tmp_path: Path) -> None:
    loaded = loaded_in(tmp_path)
    loaded.dirs.state.mkdir(parents=True)
    written = loaded.dirs.state / "registry.json"
    written.touch()
    assert machine.clock(loaded).state == "ok"
    os.utime(written, (time.time() + 3600, time.time() + 3600))
    assert machine.clock(loaded).state == "warn"


def test_room_and_what_we_take_of_it_are_measured(tmp_path: Path) -> None:
    loaded = loaded_in(tmp_path)
    loaded.dirs.logs.mkdir(parents=True)
    (loaded.dirs.logs / "apollo.log").write_bytes(bytes(3_000_000))
    assert {check.name: check.fact for check in machine.disk(loaded)}["disk.ours"] == (
        "logs take 3.0 MB, conversations 0.0 MB"
    )


# -- the team -----------------------------------------------------------------------------------------------------------


def report(state: str, version: str | None) -> StatusReport:
    return StatusReport(
        supervisor=SupervisorStatus(7, 1.0, state, version),
        gateway=GatewayStatus(url=None, state="disabled"),
        backend=BackendStatus("auto", None, "ready", None),
        specialists=[],
    )


@pytest.mark.parametrize(
    ("said", "answered", "state"),
    [
        (None, False, "warn"),
        (report("down", VERSION), False, "warn"),
        (report("running", VERSION), False, "fail"),
        (report("running", VERSION), True, "ok"),
        (report("running", "0.0.0"), True, "warn"),
        (report("running", None), True, "warn"),
    ],
)
def test_the_supervisor(said: StatusReport | None, answered: bool, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "__version__", VERSION)
    assert team.supervisor(said, answered=answered, socket=Path("s")).state == state


def test_who_restarts_is_said_where_it_is_or_should_be_systemd() -> None:
    ours = report("running", VERSION)
    theirs = msgspec.structs.replace(ours, supervisor=SupervisorStatus(7, 1.0, "running", VERSION, restarter="systemd"))
    assert team.restarter(ours, "chorus") is None
    assert team.restarter(None, "chorus") is None
    found = [team.restarter(theirs, "chorus"), team.restarter(theirs, "systemd"), team.restarter(ours, "systemd")]
    assert [one.state for one in found if one] == ["ok", "ok", "warn"]


@pytest.mark.parametrize(
    ("state", "wanted", "expected"), [("stopped", "down", "ok"), ("failed", "up", "fail"), ("hung", "up", "fail")]
)
def test_a_specialist_that_does_not_answer(tmp_path: Path, state: str, wanted: str, expected: str) -> None:
    config = resolve(loaded_in(tmp_path), "apollo")
    status = SpecialistStatus(
        name="apollo",
        ai_id="apollo-ci",
        host="",
        port=1,
        state=state,
        wanted=wanted,
        last_error="it broke",
        remedy="mend it",
    )
    found = team.member(config, Heard(None, problem="no answer"), status, supervised=True)
    assert found is not None
    assert found.state == expected
    if expected == "fail":
        assert (found.fact, found.remedy) == (f"apollo is {state}: it broke; no answer", "mend it")


async def test_somebody_else_on_the_port_is_no_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        loaded = load({"port_base": silent.getsockname()[1] - 12}, None, {"HOME": str(tmp_path)})
        heard = await team.ask(resolve(loaded, "apollo"))
    assert heard.health is None
    assert "within 2 s" in str(heard.problem)


# -- the model server ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "model", "states"),
    [
        ({}, Model(name="m", size=10, size_vram=10, context_length=8192), ["ok", "ok"]),
        ({}, Model(name="m", size=10, size_vram=4, context_length=8192), ["warn", "ok"]),
        ({"num_ctx": 8192}, Model(name="m", size=10, size_vram=0, context_length=4096), ["ok", "warn"]),
        ({}, Model(name="m", size=10, size_vram=0, context_length=2048), ["ok", "warn"]),
        ({}, Model(name="m"), ["ok"]),
    ],
)
def test_a_loaded_model(tmp_path: Path, options: dict[str, Any], model: Model, states: list[str]) -> None:
    (tmp_path / "c.toml").write_text("".join(f"[backend.options]\n{k} = {v}\n" for k, v in options.items()))
    loaded = load({}, tmp_path / "c.toml", {"HOME": str(tmp_path)})
    found = Inventory(url="", kind="ollama", version=None, models=[model], loaded={"m:latest": model})
    assert [check.state for check in models._loaded(found, {"m:latest": ["apollo"]}, loaded)] == states


@pytest.mark.parametrize(
    ("theirs", "differs"),
    [(None, False), ("http://127.0.0.1:11434", False), ("http://127.0.0.1:11434/v1", False), ("http://x:1", True)],
)
def test_a_team_that_asks_another_model_server_is_noticed(tmp_path: Path, theirs: str | None, differs: bool) -> None:
    said = msgspec.structs.replace(report("running", VERSION), backend=BackendStatus("ollama", theirs, "ready", None))
    assert bool(models.asked_instead(loaded_in(tmp_path), said)) is differs


async def test_the_teams_model_server_is_the_one_that_is_checked(tmp_path: Path) -> None:
    async with OllamaLookalike() as server:
        said = msgspec.structs.replace(
            report("running", VERSION), backend=BackendStatus("ollama", server.url, "ready", None)
        )
        found = await models.models(loaded_in(tmp_path), [resolve(loaded_in(tmp_path), "apollo")], said)
    assert [(check.name, check.state) for check in found[:2]] == [("model_server.url", "warn"), ("model_server", "ok")]
    assert server.url in found[1].fact


def test_a_missing_model_says_how_to_get_it() -> None:
    found = Inventory(url="", kind="ollama", version=None, models=[Model(name="there:latest")])
    there, missing = models._present(found, {"there:latest": ["apollo"], "gone:7b": ["athena", "metis"]})
    assert (there.state, missing.state, missing.remedy) == ("ok", "fail", "chorus models pull gone:7b")


# -- the command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    patient = "[supervision]\nhung_after = 600.0\n"  # who hangs is to be there still when the doctor comes
    with Team.start(tmp_path_factory.mktemp("doctor"), patient, ["apollo", "athena"]) as team_:
        yield team_


def test_a_team_that_is_well_has_no_failure(running: Team) -> None:
    done = running.run("doctor")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert all(line[:6] in ("ok    ", "warn  ") for line in lines)
    assert any(line.startswith("ok    apollo answers on port") for line in lines)
    assert f"{len(lines)} checks: 0 failed" in done.stderr


def test_json_is_one_versioned_object(running: Team) -> None:
    told = json.loads(running.run("doctor", "--json").stdout)
    assert (told["version"], told["ok"]) == (1, True)
    assert all(list(check) == ["name", "state", "fact", "remedy"] for check in told["checks"])
    checks = by_name(told)
    assert checks["supervisor"]["state"] == "ok"
    assert checks["model_server"]["state"] == "warn"


def test_deep_asks_each_for_a_token_and_leaves_no_trace(running: Team) -> None:
    checks = by_name(json.loads(running.run("doctor", "--deep", "--json").stdout))
    assert "gave its first token after" in checks["token.apollo"]["fact"]
    assert checks["token.athena"]["state"] == "ok"
    stored = running.home / ".local/share/chorus/sessions"
    assert not any(b"chorus-doctor" in file.read_bytes() for file in stored.glob("*.db"))


def test_a_specialist_that_hangs_is_a_failure(running: Team) -> None:
    running.signal("athena", signal.SIGSTOP)
    done = running.run("doctor", "--json")
    running.signal("athena", signal.SIGCONT)
    assert done.returncode == 1
    checks = by_name(json.loads(done.stdout))
    assert checks["specialist.athena"]["state"] == "fail"
    assert "within 2 s" in checks["specialist.athena"]["fact"]


def test_without_a_team_it_says_so_and_is_no_failure(tmp_path: Path) -> None:
    with Team.prepare(tmp_path, roster=["apollo"]) as nobody:
        done = nobody.run("doctor", "--json")
    checks = by_name(json.loads(done.stdout))
    assert done.returncode == 0
    assert (checks["supervisor"]["state"], checks["supervisor"]["remedy"]) == ("warn", "chorus up")
    assert "specialist.apollo" not in checks


def test_every_mistake_of_the_configuration_is_a_line(tmp_path: Path) -> None:
    with Team.prepare(tmp_path, config="port_base = 20000\nrooster = 1\nhots = 2\n") as broken:
        done = broken.run("doctor", env={"CHORUS_PORT_BASE": ""})
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("fail") and "unknown key" in line]
    assert "config.toml:2: rooster" in done.stdout
    assert "config.toml:3: hots" in done.stdout
