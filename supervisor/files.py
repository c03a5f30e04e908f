"""The files that a configuration names: the key for a model server, the gateway's certificate with its key.

A path is relative to the file that names it, and ~ is the user's home.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from protocol.settings import Backend, Gateway
from supervisor.checks import Leaves
from supervisor.locate import Key
from supervisor.sense import Finding

API_KEY = ("backend", "api_key_file")
CERTIFICATE = ("gateway", "tls_certificate")
KEY = ("gateway", "tls_key")


def api_key(backend: Backend, said: Leaves, environ: Mapping[str, str]) -> tuple[str | None, list[Finding]]:
    """The key for a model server that wants one."""
    if backend.kind != "openai_compatible" or not backend.api_key_file:
        return None, []
    path = path_of(backend.api_key_file, API_KEY, said, environ)
    try:
        text = path.read_text("utf-8").strip()
    except OSError as unreadable:
        return None, [(API_KEY, f"cannot read {path}: {reason(unreadable)}")]
    except UnicodeDecodeError:
        text = ""
    if not text or len(text.split()) != 1:
        return None, [(API_KEY, f"expected one key in {path}, and nothing else")]
    return text, []


def tls(gateway: Gateway, said: Leaves, environ: Mapping[str, str]) -> tuple[tuple[str, str] | None, list[Finding]]:
    """The full paths of the gateway's certificate and of its key. They are tried; whoever serves with them reads them again."""
    certificate, key = gateway.tls_certificate, gateway.tls_key
    if not certificate and not key:
        return None, []
    if not certificate or not key:
        there, missing = (CERTIFICATE, KEY) if certificate else (KEY, CERTIFICATE)
        return None, [(there, f"expected {missing[-1]} beside it: TLS takes both")]
    paths = (
        path_of(certificate, CERTIFICATE, said, environ).absolute(),
        path_of(key, KEY, said, environ).absolute(),
    )
    return (str(paths[0]), str(paths[1])), list(_unserved(*paths))


def _unserved(certificate: Path, key: Path) -> Iterator[Finding]:
    """Why the gateway could not serve with these."""
    from supervisor.gateway.tls import BadCertificate, server_context

    try:
        for path in (certificate, key):
            path.open("rb").close()
    except PermissionError:
        return  # whoever only asks the team has no need to read its key; the gateway itself would say so
    except OSError:
        pass  # which of them, is said below
    try:
        server_context(certificate, key)
    except BadCertificate as error:
        yield ("gateway", error.setting), error.reason


def path_of(name: str, key: Key, said: Leaves, environ: Mapping[str, str]) -> Path:
    """The path that a setting means."""
    path = Path(name)
    if path.parts[:1] == ("~",):
        path = Path(environ.get("HOME", "/"), *path.parts[1:])
    source = said[key].source
    return path if source.lines is None else Path(source.name).parent / path


def reason(error: OSError) -> str:
    """Why a file cannot be had, in the words of the system."""
    return (error.strerror or str(error)).lower()
