from __future__ import annotations

import os
import socket

from supervisor.fleet.owner import describe, owner_of


def fresh_port() -> int:
    """A port of which not even an ended connection is left: without SO_REUSEADDR the kernel gives no other."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def test_a_free_port_has_no_owner() -> None:
    assert owner_of(fresh_port()) is None


def test_a_listener_is_named_with_pid_command_and_age() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        owner = owner_of(listener.getsockname()[1])
    assert owner is not None
    assert owner.pid == os.getpid()
    assert "py" in owner.command
    assert owner.age is not None
    assert owner.age > 0
    assert owner.listening


def test_the_outgoing_end_of_a_connection_is_told_from_a_listener() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as outgoing,
    ):
        port = outgoing.getsockname()[1]
        owner = owner_of(port)
        fact, remedy = describe(port, "specialists.apollo.port")
    assert owner is not None
    assert not owner.listening
    assert fact.startswith(f"port {port} is the outgoing end of a connection of pid {os.getpid()} (")
    assert f"ip_local_reserved_ports={port}" in remedy


def test_an_ended_connection_does_not_hide_who_has_its_port_now() -> None:
    for _ in range(10):  # which of the two is seen first depends on all ports
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.create_server(("127.0.0.1", 0)) as other,
            socket.socket() as ended,
            socket.socket() as living,
        ):
            for one in (ended, living):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ended.bind(("127.0.0.1", 0))
            port = ended.getsockname()[1]
            ended.connect(listener.getsockname())
            accepted, _ = listener.accept()
            ended.close()  # who closes first keeps the port for a minute
            accepted.close()
            living.bind(("127.0.0.1", port))
            living.connect(other.getsockname())
            owner = owner_of(port)
        assert owner is not None
        assert owner.pid == os.getpid()


def test_a_held_port_comes_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        fact, remedy = describe(port, "specialists.apollo.port")
    assert fact.startswith(f"port {port} is held by pid {os.getpid()} (")
    assert fact.endswith(" old")
    assert remedy == f"kill {os.getpid()}, or set specialists.apollo.port"


def test_a_port_whose_owner_is_not_seen_is_still_in_use() -> None:
    port = fresh_port()
    assert describe(port, "specialists.apollo.port") == (
        f"port {port} is in use",
        "wait, or set specialists.apollo.port",
    )
