"""The machine: versions, disk, descriptors, the kernel's look at sockets, proxies, the clock. Nothing here waits."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from protocol import __version__, peer
from supervisor.checkup.check import Check, fail, ok, warn
from supervisor.config import Loaded

GIB = 1 << 30
LITTLE_SPACE, NO_SPACE = GIB, GIB // 10
SPARE_FILES = 64  # descriptors a process has besides its connections
SKEW = 60.0  # seconds in the future that a file may be
BUILT = 1_790_000_000  # no clock that is right is before this program
PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def versions() -> Iterator[Check]:
    yield ok("chorus", f"chorus {__version__}")
    yield ok("python", f"Python {platform.python_version()} at {sys.executable}")
    yield ok("system", platform.platform())


def disk(loaded: Loaded) -> Iterator[Check]:
    """Room, and what we take of it."""
    for name, folder in {"state": loaded.dirs.state, "data": loaded.dirs.data}.items():
        free = shutil.disk_usage(_existing(folder)).free
        fact = f"{free / GIB:.1f} GiB are free for {folder}"
        if free < NO_SPACE:
            yield fail(f"disk.{name}", fact, "make room: nothing can be remembered or logged")
        else:
            yield (warn if free < LITTLE_SPACE else ok)(
                f"disk.{name}", fact, "make room" if free < LITTLE_SPACE else None
            )
    logs, history = _size(loaded.dirs.logs), _size(loaded.dirs.data)
    yield ok("disk.ours", f"logs take {logs / 1e6:.1f} MB, conversations {history / 1e6:.1f} MB")


def descriptors(loaded: Loaded) -> Check:
    """The fork server raises its soft limit to the hard one, so that is what counts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = loaded.settings.limits.connections + SPARE_FILES
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        return ok("descriptors", f"a process may have {hard if hard >= 0 else 'any number of'} open files")
    return warn(
        "descriptors",
        f"a process may have {hard} open files, fewer than limits.connections = {loaded.settings.limits.connections} takes",
        f"ulimit -Hn {wanted}, or limits.connections = {max(hard - SPARE_FILES, 1)}",
    )


def kernel_look() -> Check:
    """Whether the kernel tells who is at the other end of a connection: asked about one of our own."""
    if not sys.platform.startswith("linux"):
        return warn("sock_diag", "only Linux tells whether a silent client is gone: elsewhere a failing write does")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as accepted,
    ):
        began = time.perf_counter()
        found = peer.ask(socket.AF_INET, client.getsockname(), accepted.getsockname())
        took = (time.perf_counter() - began) * 1e6
    if not isinstance(found, peer.Owner):
        return warn(
            "sock_diag",
            "the kernel does not tell who holds a connection: clients that were killed are noticed late",
            "allow AF_NETLINK, or /proc/net/tcp, to this process",
        )
    return ok("sock_diag", f"the kernel tells who holds a connection, in {took:.0f} µs")


def proxies(environ: Mapping[str, str], url: str) -> Check:
    """We never use a proxy; curl, browsers and other people's programs do."""
    found = [name for name in PROXIES if environ.get(name)]
    spared = {part.strip() for part in (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(",")}
    if not found:
        return ok("proxy", "no proxy is set")
    if {"localhost", "127.0.0.1"} <= spared or "*" in spared:
        return ok("proxy", f"{', '.join(found)} is set, and localhost is spared")
    return ok(
        "proxy",
        f"{', '.join(found)} is set and localhost is not spared: chorus goes to {url} directly, but curl would not",
        "export NO_PROXY=localhost,127.0.0.1,::1",
    )


def clock(loaded: Loaded) -> Check:
    """Records and sessions carry the time: it must not have gone back."""
    now = time.time()
    if now < BUILT:
        return fail(
            "clock", f"the clock says {time.strftime('%Y-%m-%d', time.gmtime(now))}", "set the clock: timedatectl"
        )
    ahead = max((at - now for at in _changed(loaded.dirs.state)), default=0.0)
    if ahead > SKEW:
        return warn(
            "clock", f"files in {loaded.dirs.state} are {ahead:.0f} s in the future", "set the clock: timedatectl"
        )
    return ok("clock", f"it is {time.strftime('%Y-%m-%d %H:%M:%S %Z')}, and no file of ours is from later")


def configuration(loaded: Loaded) -> Check:
    """The layers that count, lowest first."""
    others = {origin for origin in loaded.origins.values() if origin.isupper() or origin.startswith("--")}
    layers = [*(str(file) for file in loaded.files), *sorted(others)]
    return ok("config", f"configuration: {', '.join(layers) or 'built-in defaults'}")


def _existing(folder: Path) -> Path:
    return next(one for one in (folder, *folder.parents) if one.exists())


def _files(folder: Path) -> Iterable[os.stat_result]:
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:
            continue  # rotated away, or not ours to see
        yield status


def _size(folder: Path) -> int:
    return sum(status.st_size for status in _files(folder))


def _changed(folder: Path) -> Iterable[float]:
    return (status.st_mtime for status in _files(folder))
