"""What a forked child does until it is a specialist: our own daemon in this very interpreter, or a program in any language.
Or until it is the gateway, whose code is loaded in the child alone.

Such a program finds its listening sockets as sd_listen_fds(3) describes, speaks the same wire, and is kept like the others.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from setproctitle import setproctitle

from daemon import process
from daemon.logs import start_logging
from protocol.settings import ChildConfig, GatewayConfig, SpecialistConfig
from supervisor.fleet import calls, descriptors, pidfiles

FIRST_PASSED = 3  # SD_LISTEN_FDS_START
OUT_OF_THE_WAY = 64  # descriptors from here on cannot be among those that are passed
# Said to the fork server's own process, or to the one that started it.
NOT_PASSED_ON = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def become(config: ChildConfig, listeners: list[socket.socket], born: calls.Process, pids: Path) -> NoReturn:
    """Is that process until its end. Whatever else the fork server had open is closed by now.

    `born` is what the fork server knows of us.
    """
    code = 1
    try:
        setproctitle(calls.title(config.name, *calls.ports(config.places)))
        log_dir = Path(config.log_dir) if config.log_dir else None
        if log_dir is not None:
            redirect_output(log_dir / f"{config.name}.out")
        try:
            pidfiles.create(pids, born)
        except OSError as error:  # a full disk; as long as there is a supervisor, it finds us as its own child
            complain(f"cannot write to {pids}: {error}")
        if isinstance(config, GatewayConfig):
            start_logging(config.name, log_dir, os.environ)
            importlib.import_module(config.module).run(config, listeners)
            code = 0
        elif config.command:
            code = calls.CANNOT_EXECUTE
            descriptors.as_usual()
            execute(config, config.command, listeners)
        else:
            start_logging(config.name, log_dir, os.environ)
            process.run(config, listeners)
            code = 0
    except SystemExit as refusal:  # it cannot be what it is to be, and says why
        code = calls.CANNOT_EXECUTE
        complain(str(refusal))
    except BaseException:  # noqa: BLE001 - the last frame of this process: whatever it was is written down
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


def redirect_output(path: Path) -> None:
    """Standard output and error to the end of a file: a pipe would kill us when its reader dies."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # somebody may have removed it
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(nothing)
    os.close(out)


def complain(text: str) -> None:
    """A line on standard error. On a full disk it is lost, and nothing with it: no buffer holds it for a later write."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def execute(config: SpecialistConfig, command: list[str], listeners: list[socket.socket]) -> None:
    """Becomes another program; returns where that cannot be, having said why."""
    aside = [fcntl.fcntl(listener, fcntl.F_DUPFD_CLOEXEC, OUT_OF_THE_WAY) for listener in listeners]
    for number, descriptor in enumerate(aside, FIRST_PASSED):
        os.dup2(descriptor, number)  # inheritable, unlike everything else that Python opened
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    try:
        if config.command_dir:
            os.chdir(config.command_dir)
        os.execvpe(command[0], command, _environment(config, len(listeners), os.environ))  # noqa: S606
    except OSError as error:
        complain(f"cannot start {command[0]}: {error.strerror}")


def _environment(config: SpecialistConfig, sockets: int, environ: Mapping[str, str]) -> dict[str, str]:
    """What a program is told: sd_listen_fds(3)'s variables, and who it is."""
    said = {
        "LISTEN_FDS": str(sockets),
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDNAMES": ":".join([config.name] * sockets),
        "CHORUS_NAME": config.name,
        "CHORUS_AI_ID": config.ai_id,
        "CHORUS_PORT": str(config.port),
        "CHORUS_PERSONA": config.persona,
        "CHORUS_BACKEND_URL": config.url,
        **({"CHORUS_MODEL": config.model} if config.model else {}),
    }
    return {key: value for key, value in environ.items() if key not in NOT_PASSED_ON} | said
