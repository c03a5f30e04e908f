"""The process that holds every listening socket and is the parent of every specialist. No event loop, no policy.

It outlives the supervisor: the next one connects to the same UNIX socket, is told what lives and who ended meanwhile, and
goes on. It has the specialists' code loaded, so a fork answers a few milliseconds later, and it forks from its only thread:
nothing that a child inherits can be half-way through something.
"""

from __future__ import annotations

import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import NoReturn

import msgspec
from msgspec.structs import replace
from setproctitle import setproctitle

from daemon import listen, process
from daemon.logs import start_logging
from daemon.rehearsal import rehearse
from protocol.framing import LineBuffer
from protocol.settings import SpecialistConfig
from supervisor.fleet import calls
from supervisor.fleet.calls import Answered, Exited, Living

REMEMBERED_EXITS = 1000  # while no supervisor is there to be told
DESCRIPTORS = 65_536
END_MARGIN = 2.0  # seconds beyond their own grace that processes have when all are stopped without a supervisor
TOLD_WITHIN = 5.0  # seconds a supervisor has to read what it is told, before it counts as gone
RETRY_AFTER = 0.1  # seconds until a supervisor that could not be met is met again
KILLED_WITHIN = 2.0  # seconds until the kernel has taken away what was killed
OURS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# What libraries import only when it is used: in here once, or in every child again (16 ms and 14 MB each, measured).
PRELOADED = (
    "anyio._backends._asyncio",
    "concurrent.futures.thread",
    "daemon.backends.auto",
    "daemon.backends.builtin",
    "daemon.backends.ollama",
    "daemon.backends.openai_compatible",
    "encodings.idna",
    "sqlite3",
)


class ForkServer:
    """The state of the fork server: who lives, what is held, whom to tell. One thread, one writer."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._supervisor: socket.socket | None = None
        self._has_asked = False  # whoever connects only to look says nothing, and has not been told of any exit
        self._lines = LineBuffer(None)
        self._listeners: dict[str, list[socket.socket]] = {}
        self._places: dict[str, tuple[list[str], int]] = {}  # what each name's listeners were bound to
        self._grace = 0.0  # the longest that any process has of its own
        self._processes: dict[int, calls.Process] = {}
        self._exits: deque[Exited] = deque(maxlen=REMEMBERED_EXITS)
        self._stop_without_supervisor = False
        self._wakeup, self._written = _signals_into_pipe()

    def run(self) -> NoReturn:
        """Serves one supervisor after the other. Never returns."""
        while True:
            waiting = [self._listening, self._wakeup, *([self._supervisor] if self._supervisor else [])]
            ready, _, _ = select.select(waiting, [], [])
            if self._wakeup in ready:
                self._take_signals()
            if self._listening in ready:
                self._accept()
            elif self._supervisor in ready:
                self._hear()

    # -- the supervisor ---------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            supervisor = self._listening.accept()[0]
        except OSError as error:
            # Out of descriptors, or gone before it was met: it comes again.
            print(f"a supervisor could not be met: {error}", file=sys.stderr, flush=True)  # noqa: T201
            time.sleep(RETRY_AFTER)
            return
        supervisor.settimeout(TOLD_WITHIN)
        self._meet(supervisor)

    def _meet(self, supervisor: socket.socket) -> None:
        """A new supervisor: the old one, if it is still connected, is superseded."""
        if self._supervisor is not None:
            self._supervisor.close()
        self._supervisor = supervisor
        self._has_asked = False
        self._lines = LineBuffer(None)
        living = list(self._processes.values())
        self._tell(Living(pid=os.getpid(), processes=living, held=list(self._listeners), exits=list(self._exits)))

    def _hear(self) -> None:
        assert self._supervisor is not None
        try:
            data = self._supervisor.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            return
        if not self._has_asked:
            self._has_asked = True
            self._exits.clear()
        self._lines.feed(data)
        while (line := self._lines.next_line()) is not None:
            try:
                call = calls.decode_call(line)
            except msgspec.MsgspecError as error:
                # A supervisor of another version. It is refused; what lives must not fall with it.
                print(f"a call cannot be read: {error}", file=sys.stderr, flush=True)  # noqa: T201
                self._hang_up()
                return
            self._obey(call)

    def _hang_up(self) -> None:
        assert self._supervisor is not None
        self._supervisor.close()
        self._supervisor = None
        had_asked, self._has_asked = self._has_asked, False
        if self._stop_without_supervisor and had_asked:
            self._end_everything()

    def _obey(self, call: calls.AnyCall) -> None:
        try:
            match call:
                case calls.Bind():
                    self._bind(call)
                    self._tell(Answered(number=call.number))
                case calls.Release():
                    self._release(call.name)
                    self._tell(Answered(number=call.number))
                case calls.Lend():
                    self._lend(call)
                case calls.Fork():
                    pid = self._fork(call.config)
                    self._tell(Answered(number=call.number, pid=pid))
                case calls.Signal():
                    self._signal(call)
                    self._tell(Answered(number=call.number))
                case calls.Policy():
                    self._stop_without_supervisor = call.stop_without_supervisor
                    self._tell(Answered(number=call.number))
                case calls.Quit():
                    self._kill_all()
                    self._tell(Answered(number=call.number))
                    os._exit(0)
        except OSError as error:
            self._tell(Answered(number=call.number, errno=error.errno, error=error.strerror or str(error)))

    def _tell(self, report: calls.AnyReport) -> None:
        if isinstance(report, Exited) and not self._has_asked:
            self._exits.append(report)
        if self._supervisor is None:
            return
        try:
            self._supervisor.sendall(calls.line(report))
        except OSError:
            if isinstance(report, Exited) and self._has_asked:
                self._exits.append(report)
            self._give_up_on(self._supervisor)

    def _give_up_on(self, supervisor: socket.socket) -> None:
        """Gone, or it has not read for so long that half a line is all that went out: its end is seen when it is heard."""
        try:
            supervisor.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # gone

    def _bind(self, call: calls.Bind) -> None:
        place = (call.addresses, call.port)
        if self._places.get(call.name) != place:
            self._release(call.name)
            self._listeners[call.name] = listen.bind(*place)
            self._places[call.name] = place

    def _release(self, name: str) -> None:
        self._places.pop(name, None)
        for listener in self._listeners.pop(name, []):
            listener.close()

    def _lend(self, call: calls.Lend) -> None:
        listeners = self._listeners.get(call.name, [])
        answer = calls.line(Answered(number=call.number, listeners=len(listeners)))
        assert self._supervisor is not None
        socket.send_fds(self._supervisor, [answer], [listener.fileno() for listener in listeners])

    # -- processes ----------------------------------------------------------------------------------------------------------

    def _fork(self, config: SpecialistConfig) -> int:
        listeners = self._listeners.get(config.name)
        if listeners is None:
            raise OSError(0, f"the port of {config.name} is not bound")
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal for the child must find the child's own ways: through ours it would be lost, and written into our pipe.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
        try:
            pid = os.fork()
            if pid == 0:
                self._become(config, listeners)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._processes[pid] = calls.Process(
            name=config.name, pid=pid, started=time.time(), fingerprint=calls.fingerprint(config)
        )
        self._grace = max(self._grace, config.grace)
        return pid

    def _become(self, config: SpecialistConfig, listeners: list[socket.socket]) -> NoReturn:
        """In the child: leaves behind what is the fork server's, and is a specialist until the end."""
        code = 1
        try:
            os.setsid()  # signals to the group of one specialist reach nobody else
            signal.set_wakeup_fd(-1)
            for number in OURS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            for held in (self._listening, self._supervisor, self._wakeup, self._written):
                if held is not None:
                    held.close()
            for name, others in self._listeners.items():
                if name != config.name:
                    for other in others:
                        other.close()
            setproctitle(calls.title(config.name, config.port))
            log_dir = Path(config.log_dir) if config.log_dir else None
            if log_dir is not None:
                redirect_output(log_dir / f"{config.name}.out")
            start_logging(config.name, log_dir, os.environ)
            process.run(config, listeners)
            code = 0
        except BaseException:  # noqa: BLE001 - the last frame of this process: whatever it was is written down
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _signal(self, call: calls.Signal) -> None:
        # Only what has not been reaped is signalled: until then its number cannot belong to anybody else.
        if call.pid not in self._processes:
            raise ProcessLookupError(3, f"no process {call.pid} of ours")
        try:
            (os.killpg if call.group else os.kill)(call.pid, call.signal)
        except ProcessLookupError:
            os.kill(call.pid, call.signal)  # forked so lately that it has not made its group
        known = self._processes[call.pid]
        if call.signal == signal.SIGUSR1:
            self._processes[call.pid] = replace(known, draining=True)
        elif call.signal == signal.SIGTERM:
            self._processes[call.pid] = replace(known, stopping=True)

    def _take_signals(self) -> None:
        numbers = set(os.read(self._wakeup.fileno(), 4096))
        self._reap()
        if signal.SIGTERM in numbers:
            self._end_everything()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            known = self._processes.pop(pid, None)
            if known is not None:
                _kill_group(pid)  # what it had started is not left without it
                code = os.waitstatus_to_exitcode(status)
                self._tell(
                    Exited(
                        name=known.name,
                        pid=pid,
                        code=code if code >= 0 else None,
                        signal=-code if code < 0 else None,
                        at=time.time(),
                        asked=known.stopping,
                    )
                )

    def _end_everything(self) -> NoReturn:
        """Asks every process to end, ends by force what does not, and exits."""
        for pid in self._processes:
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGCONT)  # a stopped one does not hear the first
        self._await_exits(self._grace + END_MARGIN)
        self._kill_all()
        os._exit(0)

    def _kill_all(self) -> None:
        """Ends what still runs by force; afterwards it is gone and not only about to go."""
        for pid in self._processes:
            os.kill(pid, signal.SIGKILL)
        self._await_exits(KILLED_WITHIN)

    def _await_exits(self, within: float) -> None:
        deadline = time.monotonic() + within
        self._reap()
        while self._processes and (left := deadline - time.monotonic()) > 0:
            if select.select([self._wakeup], [], [], left)[0]:
                os.read(self._wakeup.fileno(), 4096)
                self._reap()


def main(listening: socket.socket, log_dir: Path) -> NoReturn:
    """Is the fork server from here on; `listening` is the UNIX socket that supervisors connect to."""
    os.setsid()  # Ctrl-C in the supervisor's terminal is not ours
    setproctitle("chorus: fork server")
    redirect_output(log_dir / "forkserver.out")
    raise_descriptor_limit()
    for name in PRELOADED:
        importlib.import_module(name)
    _filled = rehearse()  # held for as long as this frame lives, which is for ever
    # What is there by now is shared with every child until somebody writes to it; the collector must not.
    gc.collect()
    gc.freeze()
    ForkServer(listening).run()


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # it was alone; macOS says the second of a group of zombies


def redirect_output(path: Path) -> None:
    """Standard output and error to the end of a file: a pipe would kill us when its reader dies."""
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(nothing)
    os.close(out)


def raise_descriptor_limit() -> None:
    """Room for limits.connections in every child."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _signals_into_pipe() -> tuple[socket.socket, socket.socket]:
    """Signals become bytes that select sees, at the first of two ends; INT and HUP are for a terminal, not for us."""
    read, written = socket.socketpair()
    written.setblocking(False)
    signal.set_wakeup_fd(written.fileno())
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the supervisor held its own back while it began
    return read, written
