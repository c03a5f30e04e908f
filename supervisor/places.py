"""Where things are kept: folders by the XDG rules or as the service manager says, and the control socket.

Nothing is created here, except by `private_folder` for whoever is about to write.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

# A socket's path may have 108 bytes on Linux and 104 on macOS, the closing zero included.
MAX_SOCKET_PATH = 100


class Dirs(Struct, frozen=True):
    """`data` is what the user would miss; `state` what can be found again; `runtime` is lost at a reboot."""

    config: Path
    data: Path
    state: Path
    logs: Path
    runtime: Path


def dirs(environ: Mapping[str, str]) -> Dirs:
    home = _home(environ)
    state = _managed(environ, "STATE_DIRECTORY") or _xdg(environ, "XDG_STATE_HOME") or home / ".local/state/chorus"
    config = _managed(environ, "CONFIGURATION_DIRECTORY") or _xdg(environ, "XDG_CONFIG_HOME")
    return Dirs(
        config=config or home / ".config/chorus",
        data=_xdg(environ, "XDG_DATA_HOME") or _managed_data(environ) or home / ".local/share/chorus",
        state=state,
        logs=_managed(environ, "LOGS_DIRECTORY") or state / "logs",
        runtime=_managed(environ, "RUNTIME_DIRECTORY") or _xdg(environ, "XDG_RUNTIME_DIR") or _temporary(environ),
    )


def socket_path(places: Dirs, environ: Mapping[str, str]) -> Path:
    """The control socket. Its name comes from the state folder, so two instances do not meet on one socket.

    A path that the kernel would refuse moves to the temporary directory; CHORUS_SOCKET is taken as it is.
    """
    if asked_for := environ.get("CHORUS_SOCKET"):
        return Path(asked_for).absolute()
    import hashlib

    name = hashlib.sha256(os.fsencode(places.state.resolve())).hexdigest()[:8] + ".sock"
    folders = (places.runtime, _temporary(environ))
    fitting = (folder / name for folder in folders if len(os.fsencode(folder / name)) <= MAX_SOCKET_PATH)
    return next(fitting, _temporary({}) / name)


def private_folder(folder: Path) -> Path:
    """Makes the folder, and those above it that are missing, with mode 0700; returns it.

    Raises PermissionError where somebody else owns it already: in /tmp anybody may take the name first.
    """
    for above in reversed(folder.parents):
        if not above.exists():
            above.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid not in (os.getuid(), 0):  # of a link, too: systemd's own links are root's
        raise PermissionError(f"{folder} belongs to another user: set XDG_RUNTIME_DIR or CHORUS_SOCKET")
    return folder


def _home(environ: Mapping[str, str]) -> Path:
    if home := environ.get("HOME"):
        return Path(home)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # a container's user without an entry
        return _temporary(environ)


def _managed(environ: Mapping[str, str], variable: str) -> Path | None:
    """A folder that systemd made for the unit; of several, separated by colons, the first."""
    value = environ.get(variable, "").split(":")[0]
    return Path(value) if value else None


def _managed_data(environ: Mapping[str, str]) -> Path | None:
    """A system unit's only lasting folder is the state folder. XDG_RUNTIME_DIR shows a user's manager."""
    state = _managed(environ, "STATE_DIRECTORY")
    return state / "data" if state and not environ.get("XDG_RUNTIME_DIR") else None


def _xdg(environ: Mapping[str, str], variable: str) -> Path | None:
    value = environ.get(variable, "")
    return Path(value) / "chorus" if value.startswith("/") else None  # the specification: ignore a relative path


def _temporary(environ: Mapping[str, str]) -> Path:
    value = environ.get("TMPDIR", "")
    base = value if value.startswith("/") else "/tmp"  # noqa: S108 - private_folder looks at its owner
    return Path(base) / f"chorus-{os.getuid()}"
