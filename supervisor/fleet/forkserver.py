"""The process that holds every listening socket and is the parent of every specialist, and of the gateway.

No event loop, no policy.

It outlives the supervisor: the next one connects to the same UNIX socket, is told what lives and who ended meanwhile, and
goes on. It has the specialists' code loaded, so a fork answers a few milliseconds later, and sooner where it was forked ahead
(`spare.py`). It forks from its only thread: nothing that a child inherits can be half-way through something.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import msgspec
from msgspec.structs import replace
from setproctitle import setproctitle

from daemon import listen
from daemon.rehearsal import fill_holes, rehearse
from protocol.framing import LineBuffer
from protocol.settings import ChildConfig
from supervisor.fleet import calls, descriptors, pidfiles, spare
from supervisor.fleet.calls import Answered, Exited, Living, Process
from supervisor.fleet.child import become, complain, redirect_output
from supervisor.fleet.held import Held
from supervisor.fleet.spare import Spare
from supervisor.places import private_folder

REMEMBERED_EXITS = 1000  # that no supervisor has noted
END_MARGIN = 2.0  # seconds beyond their own grace that processes have when all are stopped without a supervisor
TOLD_WITHIN = 5.0  # seconds a supervisor has to read what it is told, before it counts as gone
RETRY_AFTER = 0.1  # seconds until a supervisor that could not be met is met again
KILLED_WITHIN = 2.0  # seconds until the kernel has taken away what was killed
SPARE_ROUNDS = 2  # of a rehearsal that only has to write where a specialist will
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
    """The state of the fork server: who lives, what is held, whom to tell. One thread, one writer.

    `pids` is the folder of the pid files.
    """

    def __init__(self, listening: socket.socket, pids: Path) -> None:
        self._listening = listening
        self._pids = pids
        self._boot = pidfiles.boot_id()
        self._supervisor: socket.socket | None = None
        self._has_asked = False  # whoever connects only to look says nothing, and nothing follows from its end
        self._lines = LineBuffer(None)
        self._sockets: deque[int] = deque()  # came with a call that is not read yet
        self._held = Held()
        self._processes: dict[int, Process] = {}
        self._adopted: dict[int, int] = {}  # pidfd: pid of those that are not our children
        self._exits: deque[Exited] = deque(maxlen=REMEMBERED_EXITS)
        self._stop_without_supervisor = False
        self._spare = Spare()
        self._wakeup, self._written = _signals_into_pipe()
        self._waiting = select.poll()  # not select(2): with two hundred specialists descriptors go beyond 1024
        for one in (listening, self._wakeup):
            self._waiting.register(one, select.POLLIN)

    def run(self) -> NoReturn:
        """Serves one supervisor after the other. Never returns."""
        while True:
            patience = self._spare.patience
            ready = {descriptor for descriptor, _ in self._waiting.poll(patience and patience * 1000)}
            if not ready:
                self._spare.fork(self._split, self._wait)
            if self._wakeup.fileno() in ready:
                self._take_signals()
            self._bury(ready & self._adopted.keys())
            if self._listening.fileno() in ready:
                self._accept()
            elif self._supervisor is not None and self._supervisor.fileno() in ready:
                self._hear()

    # -- the supervisor ---------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            supervisor = self._listening.accept()[0]
        except OSError as error:
            # Out of descriptors, or gone before it was met: it comes again.
            complain(f"a supervisor could not be met: {error}")
            time.sleep(RETRY_AFTER)
            return
        supervisor.settimeout(TOLD_WITHIN)
        self._meet(supervisor)

    def _meet(self, supervisor: socket.socket) -> None:
        """A new supervisor: the old one, if it is still connected, is superseded."""
        self._forget_supervisor()
        self._supervisor = supervisor
        self._waiting.register(supervisor, select.POLLIN)
        living = list(self._processes.values())
        self._tell(Living(pid=os.getpid(), processes=living, held=self._held.names, exits=list(self._exits)))

    def _hear(self) -> None:
        assert self._supervisor is not None
        try:
            data, descriptors, _, _ = socket.recv_fds(self._supervisor, 65536, calls.MOST_SOCKETS)
        except OSError:
            data, descriptors = b"", []
        if not data:
            self._hang_up()
            return
        self._sockets.extend(descriptors)
        self._has_asked = True
        self._lines.feed(data)
        while (line := self._lines.next_line()) is not None:
            try:
                call = calls.decode_call(line)
            except msgspec.MsgspecError as error:
                # A supervisor of another version. It is refused; what lives must not fall with it.
                complain(f"a call cannot be read: {error}")
                self._hang_up()
                return
            self._obey(call)

    def _hang_up(self) -> None:
        had_asked = self._has_asked
        self._forget_supervisor()
        if self._stop_without_supervisor and had_asked:
            self._end_everything()

    def _forget_supervisor(self) -> None:
        if self._supervisor is not None:
            self._waiting.unregister(self._supervisor)
            self._supervisor.close()
            self._supervisor = None
        self._has_asked = False
        self._lines = LineBuffer(None)
        while self._sockets:
            os.close(self._sockets.popleft())

    def _obey(self, call: calls.AnyCall) -> None:
        answer = Answered(number=call.number)
        try:
            match call:
                case calls.Release():
                    self._held.release(call.name)
                case calls.Lend():
                    self._tell(answer, self._held.of(call.name))
                    return
                case calls.Fork():
                    self._start(call)
                    return
                case calls.Hold():
                    self._hold(call)
                case calls.Adopt():
                    self._adopt(call.process)
                case calls.Signal():
                    self._signal(call)
                case calls.Noted():
                    self._forget_exits(call.pid)
                case calls.Policy():
                    self._stop_without_supervisor = call.stop_without_supervisor
                case calls.Quit():
                    self._kill_all()
                    self._tell(answer)
                    os._exit(0)
        except OSError as error:
            port = error.port if isinstance(error, listen.CannotBind) else None
            answer = Answered(number=call.number, errno=error.errno, error=error.strerror or str(error), port=port)
        self._tell(answer)

    def _start(self, call: calls.Fork) -> None:
        name = call.config.name
        before = self._held.places(name)
        new = self._held.bind(name, call.config.places)
        try:
            pid = self._fork(call.config)
        except OSError:
            self._held.close(name, new)  # nobody was given copies of these, so they have to be new the next time too
            raise
        is_same = before == self._held.places(name)
        sockets = () if is_same and call.has_copies else self._held.of(name)
        self._tell(Answered(number=call.number, pid=pid), sockets)

    def _tell(self, report: calls.AnyReport, sockets: Sequence[socket.socket] = ()) -> None:
        if isinstance(report, Exited):
            self._exits.append(report)  # until it is noted: a supervisor may die of what it has just been told
        if self._supervisor is None:
            return
        if isinstance(report, Answered) and sockets:
            report = replace(report, listeners=len(sockets))
        line = calls.line(report)
        try:
            sent = socket.send_fds(self._supervisor, [line], [one.fileno() for one in sockets]) if sockets else 0
            self._supervisor.sendall(line[sent:])
        except OSError:
            self._give_up_on(self._supervisor)

    def _forget_exits(self, pid: int) -> None:
        for exit_ in [one for one in self._exits if one.pid == pid]:
            self._exits.remove(exit_)

    def _give_up_on(self, supervisor: socket.socket) -> None:
        """Gone, or it has not read for so long that half a line is all that went out: its end is seen when it is heard."""
        try:
            supervisor.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # gone

    def _hold(self, call: calls.Hold) -> None:
        if len(self._sockets) < len(call.places):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # recvmsg(2) leaves out what we may not open
        came = {place: socket.socket(fileno=self._sockets.popleft()) for place in call.places}
        for one in came.values():
            one.set_inheritable(False)  # what recvmsg(2) opens is, and a program would have it beside what it is given
        self._held.take(call.name, came)

    # -- processes ----------------------------------------------------------------------------------------------------------

    def _fork(self, config: ChildConfig) -> int:
        described = partial(self._described, config, calls.fingerprint(config))
        pid = self._spare.tell(config, described, self._held.of(config.name))
        if pid is None:
            pid = self._split(lambda: self._become(config, described(os.getpid())))
        self._processes[pid] = described(pid)
        return pid

    def _split(self, live: Callable[[], None]) -> int:
        """Forks. The child leaves behind what is the fork server's own, and lives until its end; its pid is returned."""
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal for the child must find the child's own ways: through ours it would be lost, and written into our pipe.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
        try:
            if (pid := os.fork()) == 0:
                try:
                    self._leave()
                    live()
                except BaseException:  # noqa: BLE001 - the last frame of this process: whatever it was is written down
                    sys.excepthook(*sys.exc_info())
                finally:
                    os._exit(1)  # whatever happens, a second fork server it is not
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid

    def _described(self, config: ChildConfig, fingerprint: str, pid: int) -> Process:
        return Process(
            name=config.name,
            pid=pid,
            started=time.time(),
            ticks=pidfiles.ticks_of(pid),
            boot=self._boot,
            places=config.places,
            fingerprint=fingerprint,
            grace=config.grace,
        )

    def _leave(self) -> None:
        """In the child: leaves behind what is the fork server's, all but the listeners."""
        os.setsid()  # signals to the group of one specialist reach nobody else
        signal.set_wakeup_fd(-1)
        for number in OURS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for held in (self._listening, self._supervisor, self._wakeup, self._written, self._spare):
            if held is not None:
                held.close()
        for descriptor in (*self._adopted, *self._sockets):
            os.close(descriptor)

    def _become(self, config: ChildConfig, born: Process) -> None:
        """In the child: is somebody else until the end."""
        self._held.release_all_but(config.name)
        become(config, self._held.of(config.name), born, self._pids)

    def _wait(self, link: socket.socket) -> None:
        """In the spare: is nobody until it is told."""
        setproctitle(f"{calls.SPARE}, getting ready")
        self._held.release_all_but(None)
        rehearse(SPARE_ROUNDS)
        gc.collect()
        gc.freeze()
        told, listeners = spare.wait(link)
        become(told.config, listeners, told.born, self._pids)

    def _adopt(self, process: Process) -> None:
        """Takes on somebody else's child. Its end is seen by its pidfd; how it ended only its parent is told."""
        if not hasattr(os, "pidfd_open"):
            raise OSError(errno.ENOSYS, "processes can be taken on only where there is pidfd_open(2)")
        end = os.pidfd_open(process.pid)
        if not pidfiles.is_alive(process):  # asked after the pidfd was opened, so that both mean one process
            os.close(end)
            raise ProcessLookupError(errno.ESRCH, f"process {process.pid} is gone")
        self._adopted[end] = process.pid
        self._waiting.register(end, select.POLLIN)
        self._processes[process.pid] = process

    def _signal(self, call: calls.Signal) -> None:
        if call.pid not in self._processes:
            raise ProcessLookupError(errno.ESRCH, f"no process {call.pid} of ours")
        known = self._processes[call.pid]
        if call.signal == signal.SIGUSR1:
            self._note(replace(known, draining=True))
        elif call.signal == signal.SIGTERM:
            self._note(replace(known, stopping=True))
        self._send(call.pid, call.signal, group=call.group)

    def _note(self, process: Process) -> None:
        """What a later supervisor must know of a process, should we be gone by then."""
        self._processes[process.pid] = process
        try:
            pidfiles.replace(self._pids, process)
        except OSError as error:
            complain(f"cannot write to {self._pids}: {error}")

    def _send(self, pid: int, number: int, *, group: bool = False) -> None:
        """Signals a process of ours. One that has not been reaped keeps its number, so nobody else can be hit."""
        for end, adopted in self._adopted.items():
            # Not our child, so its number may be free already: only its pidfd is sure to be it.
            if adopted == pid:
                signal.pidfd_send_signal(end, 0)
                break
        try:
            (os.killpg if group else os.kill)(pid, number)
        except ProcessLookupError:
            os.kill(pid, number)  # forked so lately that it has not made its group

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
            code = os.waitstatus_to_exitcode(status)
            self._ended(pid, code if code >= 0 else None, -code if code < 0 else None)

    def _bury(self, ends: set[int]) -> None:
        """Those that were adopted and have ended."""
        for end in ends:
            self._waiting.unregister(end)
            os.close(end)
            self._ended(self._adopted.pop(end), None, None)

    def _ended(self, pid: int, code: int | None, number: int | None) -> None:
        known = self._processes.pop(pid, None)
        if known is None:
            self._spare.ended(pid)
            return
        _kill_group(pid)  # what it had started is not left without it
        self._tell(Exited(name=known.name, pid=pid, code=code, signal=number, at=time.time(), asked=known.stopping))
        try:
            pidfiles.remove(self._pids, known)
        except OSError:
            pass  # it says of a process that is gone that it lived: nobody believes it

    def _end_everything(self) -> NoReturn:
        """Asks every process to end, ends by force what does not, and exits."""
        self._send_all(signal.SIGTERM)
        self._send_all(signal.SIGCONT)  # a stopped one does not hear the first
        grace = max((process.grace for process in self._processes.values()), default=0.0)
        self._await_exits(grace + END_MARGIN)
        self._kill_all()
        os._exit(0)

    def _kill_all(self) -> None:
        """Ends what still runs by force; afterwards it is gone and not only about to go."""
        self._send_all(signal.SIGKILL)
        self._spare.kill()
        self._await_exits(KILLED_WITHIN)

    def _send_all(self, number: int) -> None:
        for pid in self._processes:
            try:
                self._send(pid, number)
            except ProcessLookupError:
                pass  # one that was adopted, and has ended

    def _await_exits(self, within: float) -> None:
        deadline = time.monotonic() + within
        self._reap()
        while self._processes and (left := deadline - time.monotonic()) > 0:
            ends = select.poll()  # and nothing else: whoever calls us now is answered by our end
            for one in (self._wakeup.fileno(), *self._adopted):
                ends.register(one, select.POLLIN)
            ready = {descriptor for descriptor, _ in ends.poll(left * 1000)}
            if self._wakeup.fileno() in ready:
                os.read(self._wakeup.fileno(), 4096)
                self._reap()
            self._bury(ready & self._adopted.keys())


def main(listening: socket.socket, log_dir: Path, state: Path) -> NoReturn:
    """Is the fork server from here on; `listening` is the UNIX socket that supervisors connect to.

    In the state folder it writes who it is, and keeps the pid files of its processes.
    """
    os.setsid()  # Ctrl-C in the supervisor's terminal is not ours
    setproctitle(calls.FORK_SERVER)
    redirect_output(log_dir / "forkserver.out")
    try:
        pidfiles.write(state / pidfiles.FORK_SERVER, pidfiles.this_process())
    except OSError as error:
        complain(f"cannot write to {state}: {error}")
    descriptors.make_room()
    for name in PRELOADED:
        importlib.import_module(name)
    rehearse()
    _filled = fill_holes()  # held for as long as this frame lives, which is for ever
    # What is there by now is shared with every child until somebody writes to it; the collector must not.
    gc.collect()
    gc.freeze()
    ForkServer(listening, private_folder(state / pidfiles.FOLDER)).run()


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # it was alone; macOS says the second of a group of zombies


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
