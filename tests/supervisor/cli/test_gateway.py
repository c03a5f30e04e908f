"""`chorus gateway run`: the gateway in the foreground, with no supervisor."""

from __future__ import annotations

import http.client
import os
import signal
import socket
from pathlib import Path

from team import Team, wait_until


def is_healthy(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except ConnectionRefusedError:
        return False
    finally:
        connection.close()


def test_it_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    team = Team.prepare(tmp_path, roster=["apollo"])
    port = team.gateway_port - 1
    with team, team.popen("gateway", "run", "--port", str(port)) as process:
        try:
            for host in ("127.0.0.1", "::1"):
                wait_until(lambda host=host: is_healthy(host, port), 60, "it does not answer")  # type: ignore[misc]
            assert not is_healthy("127.0.0.1", team.gateway_port)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert f"listening at http://127.0.0.1:{port}" in said.decode()
    assert "stopped in good order" in said.decode()


def test_a_taken_port_is_named_with_what_to_do(tmp_path: Path) -> None:
    team = Team.prepare(tmp_path, roster=["apollo"])
    with team, socket.create_server(("127.0.0.1", team.gateway_port)):
        done = team.run("gateway", "run")
    assert done.returncode == 1
    assert f"error: cannot start gateway: port {team.gateway_port} is held by pid {os.getpid()} (" in done.stderr
    assert f"do: kill {os.getpid()}, or set gateway.port" in done.stderr
