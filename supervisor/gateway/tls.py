"""The gateway's certificate: read, looked at, and read again when it was renewed.

Whoever reads the configuration has it read, too, to say at once what is wrong with it.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

logger = logging.getLogger("chorus.gateway")

LOOK_EVERY = 60.0  # seconds
WARN_BEFORE = timedelta(days=14)
HANDSHAKE_WITHIN = 10.0  # seconds; asyncio's own 60 is long for somebody who only holds a connection


class BadCertificate(Exception):
    """It cannot be served with. `reason` says why, and `setting` is the one of [gateway] that it is about."""

    def __init__(self, setting: Literal["tls_certificate", "tls_key"], reason: str) -> None:
        super().__init__(f"gateway.{setting}: {reason}")
        self.setting = setting
        self.reason = reason


class Certificate:
    """A certificate with its key, as PEM files. `context` is for the listeners: new connections use what was read last."""

    def __init__(self, certificate: str, key: str) -> None:
        """Raises BadCertificate."""
        self._files = (Path(certificate), Path(key))
        self._seen = self._look()
        self.context = server_context(*self._files)
        _warn(self._files[0])

    async def run(self) -> None:
        """Reads it again whenever its files have changed, until cancelled. One that is bad is said, and not used."""
        import anyio  # for the gateway alone: reading the configuration shall not take long

        while True:
            await anyio.sleep(LOOK_EVERY)
            await self.renew()

    async def renew(self) -> None:
        from anyio import to_thread

        seen = await to_thread.run_sync(self._look)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            await to_thread.run_sync(server_context, *self._files)  # before the one in use is touched
            self.context.load_cert_chain(*self._files)
        except (BadCertificate, OSError) as error:
            logger.error("the certificate before is still served: %s", error)
            return
        logger.info("%s was read again", self._files[0])
        _warn(self._files[0])

    def _look(self) -> list[tuple[int, ...]]:
        seen: list[tuple[int, ...]] = []
        for path in self._files:
            try:
                status = os.stat(path)
                seen.append((status.st_ino, status.st_mtime_ns, status.st_size))
            except OSError as error:
                seen.append((error.errno or 0,))
        return seen


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What serves with these. Raises BadCertificate."""

    def ask_nobody() -> str:
        raise BadCertificate("tls_key", f"{key} has a password, and nobody is there to ask: store it without")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # TLS 1.2 and later
    _read("tls_certificate", certificate)
    _read("tls_key", key)
    try:
        context.load_cert_chain(certificate, key, password=ask_nobody)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadCertificate("tls_key", f"{key} is not the key of {certificate}") from None
        raise BadCertificate("tls_certificate", f"{certificate} and {key} are no certificate with its key") from None
    return context


def _read(setting: Literal["tls_certificate", "tls_key"], path: Path) -> None:
    """The library does not say which of two files it cannot read."""
    try:
        path.open("rb").close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadCertificate(setting, f"cannot read {path}: {reason}") from None


def notice(certificate: Path, now: datetime) -> str | None:
    """What is to be said of a certificate that ends soon, or has. It is served all the same: whoever trusts it by itself
    does not look at dates.
    """
    ends = _ends(certificate)
    if ends is None or ends - now > WARN_BEFORE:
        return None
    if ends <= now:
        return f"{certificate} has expired on {ends.date()}: clients will refuse it"
    return f"{certificate} expires on {ends.date()}"


def _warn(certificate: Path) -> None:
    if (said := notice(certificate, datetime.now(UTC))) is not None:
        logger.warning("%s", said)


def _ends(certificate: Path) -> datetime | None:
    """When the first certificate of a file ends; None where that cannot be made out.

    The library tells of no certificate but a peer's. RFC 5280, 4.1: after the version and the number, a TBSCertificate has the
    sequences of signature, issuer and validity, which is two times.
    """
    try:
        pem = _PEM.search(certificate.read_text("ascii", "replace"))
        if pem is None:
            return None
        body = next(_parts(next(_parts(ssl.PEM_cert_to_DER_cert(pem[0])))[1]))[1]
        _signature, _issuer, validity, *_ = (content for tag, content in _parts(body) if tag == _SEQUENCE)
        _begins, (tag, until) = _parts(validity)
        form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
        return datetime.strptime(until.decode("ascii"), form).replace(tzinfo=UTC)
    except (OSError, ValueError, IndexError, StopIteration):
        return None


_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _UTC_TIME = 0x30, 0x17


def _parts(der: bytes) -> Iterator[tuple[int, bytes]]:
    """The values that stand one behind the other in DER (X.690, 8.1): each with its tag."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length > 0x7F:
            more = length & 0x7F
            length, at = int.from_bytes(der[at : at + more], "big"), at + more
        yield tag, der[at : at + length]
        at += length
