"""Certificates for tests: each signed by itself, for this machine's loopback names."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def certified(folder: Path, name: str = "", *, days: int = 90, password: str | None = None) -> tuple[Path, Path]:
    """A certificate and its key: cert.pem and key.pem, behind the name. Skips the test where openssl is missing."""
    if shutil.which("openssl") is None:
        reason = "openssl is not installed"
        print(reason)
        pytest.skip(reason)
    certificate, key = folder / f"{name}cert.pem", folder / f"{name}key.pem"
    call = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    call += ["-subj", f"/CN={name}box.example", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    call += ["-days", str(days), "-keyout", str(key), "-out", str(certificate)]
    call += ["-passout", f"pass:{password}"] if password else ["-nodes"]
    subprocess.run(call, check=True, capture_output=True)
    return certificate, key
