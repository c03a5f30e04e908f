"""Starting the fork server: off the supervisor itself, before it has loaded anything heavy, so that both load in parallel."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path


def launch(path: Path, log_dir: Path, state: Path, leave: tuple[int, ...] = ()) -> int:
    """Forks the fork server and returns its pid; connections to `path` wait for it when this returns.

    `leave` are descriptors that are the caller's alone, such as its lock. Call it before any thread or event loop exists.
    The child never returns from here.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(os.fspath(path))
    path.chmod(0o600)
    listening.listen(4)
    pid = os.fork()
    if pid:
        listening.close()
        return pid
    try:
        for descriptor in leave:
            os.close(descriptor)
        from supervisor.fleet import forkserver

        forkserver.main(listening, log_dir, state)
    except BaseException:  # noqa: BLE001 - the last frame of this process: whatever it was is written down
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


def is_running(path: Path) -> bool:
    """Whether somebody listens there. One that is stopped does not count any more when many have called."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # where its backlog is full, a connect would wait for ever
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
        return True


def _main() -> None:
    """`python -m supervisor.fleet.launch SOCKET LOGS STATE`: the fork server as a process of its own.

    Where the system refuses, the exit code is its errno.
    """
    path, logs, state = map(Path, sys.argv[1:])
    try:
        launch(path, logs, state)
    except OSError as error:
        sys.stderr.write(f"no fork server can be started: {error}\n")
        sys.exit(error.errno)


if __name__ == "__main__":
    _main()
