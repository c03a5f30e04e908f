"""A team whose gateway is to serve other machines: real processes, from the first word of what is missing to an answer."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import Any

from certifying import certified
from team import Team, wait_until

CONFIG = """
[gateway]
host = "0.0.0.0"
"""
TLS = "tls_certificate = 'cert.pem'\ntls_key = 'key.pem'\n"


def gateway(team: Team) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(team.run("status", "--json").stdout)["gateway"]
    return told


def asked(team: Team, key: str | None = None, path: str = "/api/chat/apollo") -> int:
    """The status of a question, by TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    link = http.client.HTTPSConnection("127.0.0.1", team.gateway_port, timeout=30, context=context)
    try:
        link.request("POST", path, b'{"message": "hi"}', {"X-API-Key": key} if key else {})
        return link.getresponse().status
    finally:
        link.close()


def test_a_team_is_opened_to_other_machines_step_by_step(tmp_path: Path) -> None:
    team = Team.start(tmp_path, CONFIG, roster=["apollo"], env={"CHORUS_GATEWAY": "true"})
    try:
        told = gateway(team)
        assert told["state"] == "degraded"
        assert "set gateway.tls_certificate and gateway.tls_key" in told["last_error"]

        folder = team.home / ".config/chorus"
        certified(folder)
        (folder / "config.toml").write_text(CONFIG + TLS)
        assert team.run("reload").returncode == 0
        wait_until(
            lambda: "chorus key create" in (gateway(team)["last_error"] or ""), 30, "the status does not name the key"
        )
        assert asked(team) == 503

        key = team.run("key", "create").stdout.strip()
        assert asked(team, key) == 200
        assert asked(team) == 401
        wait_until(lambda: gateway(team)["state"] == "ready", 30, "the gateway does not become ready")
        assert gateway(team)["last_error"] is None

        assert team.run("key", "revoke", key).returncode == 0
        assert asked(team, key) == 503  # the last one is gone
    finally:
        team.down()
