from __future__ import annotations

import socket
from contextlib import closing

from supervisor.fleet.copies import Copies


def test_whoever_has_connected_is_waited_for_until_somebody_accepts_on_any_copy() -> None:
    with closing(Copies()) as copies, socket.create_server(("127.0.0.1", 0)) as theirs:
        copies.put("apollo", [theirs.dup()])
        assert not copies.is_waited_for("apollo")
        with socket.create_connection(theirs.getsockname()):
            assert copies.is_waited_for("apollo")
            theirs.accept()[0].close()
            assert not copies.is_waited_for("apollo")


def test_nobody_is_waited_for_where_no_copies_are_held() -> None:
    assert not Copies().is_waited_for("apollo")
