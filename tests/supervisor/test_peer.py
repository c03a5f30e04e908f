"""Who may control a team: the peer of a real UNIX socket, in a process of another user."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor import peer, sense

GROUP = 64_322
STRANGER = 64_321
CONNECT = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(
    ("who", "group", "allowed"),
    [
        (["--reuid=0", "--keep-groups"], None, True),
        ([f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups"], None, False),
        ([f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups"], GROUP, False),
        ([f"--reuid={STRANGER}", f"--regid={GROUP}", "--clear-groups"], GROUP, True),
        ([f"--reuid={STRANGER}", f"--regid={STRANGER}", f"--groups=7,{GROUP},9"], GROUP, True),
        ([f"--reuid={STRANGER}", f"--regid={STRANGER}", f"--groups={GROUP}"], None, False),
    ],
)
def test_root_and_members_may_and_others_may_not(who: list[str], group: int | None, allowed: bool) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # an abstract name, which any user reaches
        listener.listen()
        name = "\0" + listener.getsockname()[1:].decode()
        code = CONNECT.replace("sys.argv[1]", repr(name))
        child = subprocess.Popen(["setpriv", *who, _python(), "-c", code])
        connection, _ = listener.accept()
        with connection:
            assert peer.may_control(connection, group) is allowed
        assert child.wait(10) == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to any group")
def test_a_socket_is_open_to_its_group_only(tmp_path: Path) -> None:
    path = tmp_path / "control"
    path.touch(mode=0o600)
    peer.open_to(GROUP, path)
    assert (path.stat().st_gid, path.stat().st_mode & 0o777) == (GROUP, 0o660)


def test_a_group_is_known_by_name_and_by_number() -> None:
    ours = grp.getgrgid(os.getgid())
    assert sense.gid(ours.gr_name) == sense.gid(str(ours.gr_gid)) == os.getgid()
    assert sense.gid("nobodys-group") is None


def test_whose_first_group_it_is_is_a_member_and_whoever_is_listed() -> None:
    assert pwd.getpwuid(os.getuid()).pw_uid in sense.members(pwd.getpwuid(os.getuid()).pw_gid)
    listed = next(((one.gr_gid, one.gr_mem) for one in grp.getgrall() if one.gr_mem), None)
    if listed:
        assert {sense.uid(name) for name in listed[1]} <= {*sense.members(listed[0]), None}
    assert sense.members(GROUP) == []


def _python() -> str:
    """An interpreter that any user may run: ours may be in somebody's home."""
    return "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable
