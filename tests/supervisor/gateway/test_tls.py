"""The gateway's certificate: served, renewed, and what is said of one that is no good."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from certifying import certified
from gatewaying import gateway
from scripted import EchoBackend

from supervisor.gateway.tls import BadCertificate, Certificate, notice


def presented(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=5)


async def test_off_loopback_a_key_and_tls_are_enough(tmp_path: Path) -> None:
    certificate, key = certified(tmp_path)
    settings = {"host": "0.0.0.0", "tls_certificate": str(certificate), "tls_key": str(key)}
    async with gateway(tmp_path, settings, apollo=EchoBackend()) as served:
        _, text = served.key()
        with anyio.fail_after(10):
            for key_sent, status in ((text, 200), ("", 401)):
                headers = {"X-API-Key": key_sent, "Origin": served.url}
                told, _, _ = await served.request("POST", "/api/chat/apollo", json={"message": "hi"}, headers=headers)
                assert told == status
            plain = await served.raw("GET / HTTP/1.1", "Host: 127.0.0.1")
            assert plain.status in (0, 400)
            found = await anyio.to_thread.run_sync(presented, served.port)
    assert found.split() == certificate.read_text().split()


async def test_a_renewed_certificate_is_served_without_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "chorus.gateway")
    ours = Certificate(*map(str, certified(tmp_path, "old-")))
    renewed, key = certified(tmp_path, "new-")

    async def shown() -> str:
        listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=ours.context)
        async with listening:
            return await anyio.to_thread.run_sync(presented, listening.sockets[0].getsockname()[1])

    with anyio.fail_after(10):
        before = await shown()
        shutil.copy(renewed, tmp_path / "old-cert.pem")
        await ours.renew()  # its key is not there yet
        assert await shown() == before
        assert "still served" in caplog.text
        shutil.copy(key, tmp_path / "old-key.pem")
        await ours.renew()
        assert (await shown()).split() == renewed.read_text().split()
    assert "read again" in caplog.text


@pytest.mark.parametrize("what", ["missing", "swapped", "foreign", "nonsense", "password"])
def test_what_cannot_be_served_with_is_said_with_its_remedy(tmp_path: Path, what: str) -> None:
    certificate, key = certified(tmp_path)
    match what:
        case "missing":
            said, files = (
                "gateway.tls_key: cannot read .*gone.key: no such file",
                (certificate, tmp_path / "gone.key"),
            )
        case "swapped":
            said, files = "are no certificate with its key", (key, certificate)
        case "foreign":
            said, files = "is not the key of", (certificate, certified(tmp_path, "other-")[1])
        case "nonsense":
            (tmp_path / "nonsense").write_text("hello")
            said, files = "are no certificate with its key", (tmp_path / "nonsense", key)
        case _:
            said, files = "has a password", certified(tmp_path, "locked-", password="secret")
    with pytest.raises(BadCertificate, match=said):
        Certificate(*map(str, files))


def test_a_certificate_that_ends_is_said_to(tmp_path: Path) -> None:
    certificate, now = certified(tmp_path, days=30)[0], datetime.now(UTC)
    assert notice(certificate, now) is None
    assert "expires on" in str(notice(certificate, now + timedelta(days=20)))
    assert "has expired on" in str(notice(certificate, now + timedelta(days=31)))
    assert notice(Path(__file__), now) is None  # nothing can be said
