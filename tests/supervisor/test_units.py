"""The unit files: what becomes of those in `systemd/`, and that they come along with an installation."""

from __future__ import annotations

import re
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ports import free_port_base
from team import ROOT
from user_manager import UserManager

from supervisor.config import load
from supervisor.roster import children
from supervisor.units import MARK, Scope, Team, polkit_rule, quoted, surroundings, unit_files

PROGRAM = [sys.executable, "-P", "-m", "supervisor.cli"]


def units(**how: Any) -> dict[str, str]:
    made_for: dict[str, Any] = {
        "scope": Scope.SYSTEM,
        "restarter": "chorus",
        "program": PROGRAM,
        "environ": {},
        "children": children(load({}, None, {"HOME": "/nonexistent"})),
        "addresses": ["127.0.0.1", "::1"],
        "remote": False,
    }
    return unit_files(Team(**(made_for | how)))


def test_the_systems_unit_is_the_file_of_the_repository_with_another_program() -> None:
    text = (ROOT / "systemd/chorus.service").read_text()
    as_it_is = re.sub(r"\A(#.*\n)+", "", text).replace("/opt/chorus/bin/chorus", " ".join(PROGRAM))
    assert units()["chorus.service"] == f"{MARK}\n{as_it_is}"


def test_a_users_unit_has_no_key_that_wants_privileges() -> None:
    for text in units(scope=Scope.USER, restarter="systemd").values():
        assert not re.search(
            r"^(User|Group|Protect|Private|RuntimeDirectory|StateDirectory|Capabil)", text, re.MULTILINE
        )
        assert "multi-user.target" not in text
        assert "ollama.service" not in text


def test_each_specialist_has_a_socket_with_its_addresses_and_port() -> None:
    found = units(restarter="systemd")
    assert len([name for name in found if name.endswith(".socket")]) == 19
    athena = found["specialist@athena.socket"]
    assert "ListenStream=127.0.0.1:45005\nListenStream=[::1]:45005\n" in athena
    assert "FileDescriptorName=athena\n" in athena
    assert "apollo" not in athena
    assert "::1" not in units(restarter="systemd", addresses=["127.0.0.1"])["specialist@athena.socket"]
    assert "Wants=specialist@athena.service\n" in found["chorus-specialists.target"]


def test_the_gateway_has_units_of_its_own_made_like_a_specialists() -> None:
    found = units(restarter="systemd")
    socket, service = found["chorus-gateway.socket"], found["chorus-gateway.service"]
    assert "ListenStream=127.0.0.1:8003\nListenStream=[::1]:8003\n" in socket
    assert "FileDescriptorName=gateway\n" in socket
    assert f"ExecStart={' '.join(PROGRAM)} gateway run\n" in service
    assert "Requires=chorus-gateway.socket\n" in service
    assert "CHORUS_SOCKET=/run/chorus/control.sock\n" in service, "it asks the supervisor"
    assert "exits/gateway'" in service
    assert "CHORUS_SOCKET" not in units(restarter="systemd", scope=Scope.USER)["chorus-gateway.service"]
    for text in (socket, service):
        assert "specialist@" not in text
        assert "%i" not in text
        assert "apollo" not in text
    assert "Wants=chorus-gateway.service\n" in found["chorus-specialists.target"]


def test_who_restarts_is_said_to_every_unit() -> None:
    found = units(restarter="systemd")
    for name in ("chorus.service", "specialist@.service", "chorus-gateway.service"):
        assert "Environment=CHORUS_RESTARTER=systemd\n" in found[name]
    assert set(units()) == {"chorus.service"}
    assert "CHORUS_RESTARTER" not in units()["chorus.service"]


def test_a_model_server_on_another_machine_may_be_reached() -> None:
    assert "IPAddressDeny=any" in units()["chorus.service"]
    assert "IPAddress" not in units(remote=True)["chorus.service"]


def test_the_account_may_manage_the_specialists_units_and_no_others() -> None:
    def rule(scope: Scope, restarter: Any) -> str | None:
        how: dict[str, Any] = {"program": [], "environ": {}, "children": [], "addresses": [], "remote": False}
        return polkit_rule(Team(scope=scope, restarter=restarter, **how))

    assert rule(Scope.USER, "systemd") is rule(Scope.SYSTEM, "chorus") is None
    text = rule(Scope.SYSTEM, "systemd")
    assert text
    found = re.search(r"/(\^.*\$)/", text)
    assert found
    allowed = re.compile(found[1])
    assert allowed.match("specialist@tekton_core.service")
    assert allowed.match("chorus-specialists.target")
    assert allowed.match("chorus-gateway.socket")
    assert not allowed.match("sshd.service")
    assert not allowed.match("specialist@a.service.evil")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["/usr/bin/python3", "-P"], "/usr/bin/python3 -P"),
        (["/a b/py"], '"/a b/py"'),
        (["100%", "$HOME"], "100%% $$HOME"),
        (['say "so"', "a\\b"], '"say \\"so\\"" "a\\\\b"'),
    ],
)
def test_words_are_quoted_as_systemd_reads_them(words: list[str], line: str) -> None:
    assert quoted(words) == line


def test_what_decides_which_team_it_is_goes_along_and_a_secret_does_not() -> None:
    environ = {
        "CHORUS_MODEL": "a b",
        "OLLAMA_HOST": "",
        "CHORUS_API_KEY": "secret",
        "CHORUS_RESTARTER": "systemd",
        "XDG_STATE_HOME": "/s",
        "PATH": "/bin",
    }
    assert surroundings(environ, Scope.USER) == {"CHORUS_MODEL": "a b", "XDG_STATE_HOME": "/s"}
    assert surroundings(environ, Scope.SYSTEM) == {"CHORUS_MODEL": "a b"}
    assert 'Environment="CHORUS_MODEL=a b"\n' in units(environ={"CHORUS_MODEL": "a b"})["chorus.service"]


@pytest.mark.parametrize("scope", Scope)
def test_systemd_finds_nothing_wrong_in_them(tmp_path: Path, scope: Scope) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (apt install systemd)")
    found = units(scope=scope, restarter="systemd")
    for name, text in found.items():
        (tmp_path / name).write_text(text)
    names = [name for name in found if name != "specialist@.service"]
    call = ["systemd-analyze", "verify", "--man=no", f"--{scope.value}", *names, "specialist@apollo.service"]
    said = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:"})
    ours = [line for line in said.stderr.splitlines() if "chorus" in line or "specialist" in line]
    assert not ours, said.stderr


def test_an_installation_from_a_wheel_has_them_and_its_service_runs(tmp_path: Path, user_manager: UserManager) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    environment = tmp_path / "with a space"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    [packages] = environment.glob("lib/python*/site-packages")
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(packages)
    # What it needs is there already; ours comes first.
    (packages / "dependencies.pth").write_text(site.getsitepackages()[0])
    env = {"CHORUS_PORT_BASE": str(free_port_base(["apollo"])), "CHORUS_ROSTER": "apollo", "CHORUS_BACKEND": "builtin"}
    env["CHORUS_GATEWAY"] = "false"
    call = [str(environment / "bin/python"), "-P", "-m", "supervisor.cli"]
    done = user_manager.run(*call, "service", "install", "--user", env=env)
    assert done.returncode == 0, done.stderr
    supervisor = user_manager.main_pid("chorus.service")
    assert Path(f"/proc/{supervisor}/environ").read_bytes().count(b"CHORUS_ROSTER=apollo\0") == 1
    where = user_manager.run(*call[:2], "-c", "import supervisor; print(supervisor.__file__)", env=env).stdout
    assert where.startswith(str(packages))
    assert f'ExecStart="{environment}/bin/python" -P' in (user_manager.units / "chorus.service").read_text()
