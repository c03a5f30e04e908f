from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest
from keeping import fork_server, forked_by, specialist, wait_gone, wait_reaped
from msgspec.structs import replace
from ports import free_port

from protocol.framing import LineBuffer
from protocol.settings import SpecialistConfig
from supervisor.fleet import calls, pidfiles
from supervisor.fleet.calls import Answered, Exited, Living


class Supervisor:
    """One connection to a fork server, as a supervisor has it, in the order in which things come."""

    def __init__(self, path: Path) -> None:
        self.link = socket.socket(socket.AF_UNIX)
        self.link.settimeout(10)
        self.link.connect(os.fspath(path))
        self._lines = LineBuffer(None)
        self._number = 0
        self.exits: list[Exited] = []
        living = self.read()
        assert isinstance(living, Living)
        self.living = living

    def read(self) -> calls.AnyReport:
        while (line := self._lines.next_line()) is None:
            data = self.link.recv(65536)
            assert data, "the fork server hung up"
            self._lines.feed(data)
        report: calls.AnyReport = calls.decode_report(line)
        return report

    def answered(self) -> Answered:
        while not isinstance(report := self.read(), Answered):
            assert isinstance(report, Exited)
            self.exits.append(report)
        return report

    def exit_of(self, pid: int) -> Exited:
        while not (found := [one for one in self.exits if one.pid == pid]):
            report = self.read()
            assert isinstance(report, Exited)
            self.exits.append(report)
        return found[0]

    def call(self, call: calls.AnyCall) -> Answered:
        self.link.sendall(calls.line(call))
        answer = self.answered()
        assert answer.number == call.number
        return answer

    def next(self) -> int:
        self._number += 1
        return self._number

    def fork(self, config: SpecialistConfig) -> Answered:
        return self.call(calls.Fork(number=self.next(), config=config))

    def start(self, config: SpecialistConfig) -> int:
        pid = self.fork(config).pid
        assert pid is not None
        return pid

    def signal(self, pid: int, number: int, *, group: bool = False) -> Answered:
        return self.call(calls.Signal(number=self.next(), pid=pid, signal=number, group=group))

    def ended(self) -> bool:
        """Reads to the end of the connection."""
        while self.link.recv(65536):
            pass
        return True


@contextmanager
def supervisor(path: Path) -> Iterator[Supervisor]:
    one = Supervisor(path)
    with one.link:
        yield one


def answers(port: int) -> bool:
    """Whether somebody answers a ping there; waits for as long as it takes."""
    with socket.create_connection(("127.0.0.1", port), 10) as stream:
        stream.sendall(b'{"type":"ping","close":true}\n')
        return b'"pong"' in stream.recv(65536)


def test_a_specialist_answers_on_the_port_that_was_bound_for_it(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        pid = ours.start(config)
        assert answers(config.port)
        assert psutil.Process(pid).cmdline()[0] == f"chorus: apollo [{config.port}]"


def test_a_specialist_leads_a_session_of_its_own(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        pid = ours.start(config)
        assert answers(config.port)
        assert os.getsid(pid) == pid == os.getpgid(pid)


def test_a_child_has_its_own_listener_and_nothing_else_of_ours(tmp_path: Path) -> None:
    apollo, athena = specialist(tmp_path), specialist(tmp_path, "athena")
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        ours.start(apollo)
        pid = ours.start(athena)
        assert answers(athena.port)
        process = psutil.Process(pid)
        listening = [one.laddr.port for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
        inherited = [one for one in process.net_connections("unix") if str(path) in str(one.laddr)]
    assert listening == [athena.port]
    assert inherited == []


def the_spare(ours: Supervisor) -> int:
    """The one that is ready to be told, as soon as there is one."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for child in psutil.Process(ours.living.pid).children():
            try:
                if child.cmdline()[:1] == [calls.SPARE]:
                    return child.pid
            except psutil.Error:
                pass  # it has ended meanwhile
    raise AssertionError("there is no spare")


def test_a_spare_becomes_the_next_specialist(tmp_path: Path) -> None:
    config, other = specialist(tmp_path), specialist(tmp_path, "athena")
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        ours.start(other)
        assert answers(other.port)  # by then it is not called a spare any more, if it was one
        spare = the_spare(ours)
        pid = ours.start(config)
        assert pid == spare
        assert answers(config.port)
        process = psutil.Process(pid)
        assert os.getsid(pid) == pid
        assert process.cmdline()[:1] == [calls.title("apollo", config.port)]
        listening = [one.laddr.port for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
        assert listening == [config.port]
        assert pidfiles.read(tmp_path / pidfiles.FOLDER / f"apollo.{pid}") is not None
        assert the_spare(ours) != pid


def test_a_spare_that_cannot_be_told_is_replaced(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        spare = the_spare(ours)
        os.kill(spare, signal.SIGSTOP)
        while psutil.Process(spare).status() != psutil.STATUS_STOPPED:
            pass
        pid = ours.start(config)
        assert pid != spare
        assert answers(config.port)
        wait_gone(spare)


def test_a_spare_that_has_ended_is_nobody(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        spare = the_spare(ours)
        os.kill(spare, signal.SIGKILL)
        wait_reaped(spare)
        assert ours.start(config) != spare
        assert answers(config.port)
        assert ours.exits == []


def test_a_spare_ends_with_its_fork_server(tmp_path: Path) -> None:
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        spare = the_spare(ours)
        os.kill(ours.living.pid, signal.SIGKILL)
        wait_gone(spare)


def test_a_program_may_come_out_of_a_spare(tmp_path: Path) -> None:
    out = tmp_path / "said"
    config = specialist(
        tmp_path, command=["sh", "-c", f"echo $$ $LISTEN_PID $LISTEN_FDS > {out}.new; mv {out}.new {out}"]
    )
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        spare = the_spare(ours)
        assert ours.start(config) == spare
        assert ours.exit_of(spare).code == 0
    assert out.read_text() == f"{spare} {spare} 1\n"


def test_a_taken_port_is_refused_with_its_errno(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        config = specialist(tmp_path, port=stranger.getsockname()[1])
        with fork_server(tmp_path) as path, supervisor(path) as ours:
            assert ours.fork(config).errno == errno.EADDRINUSE


def test_a_second_process_of_a_name_has_the_same_listener(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        ours.start(config)
        ours.start(config)
        with psutil.Process(ours.living.pid).oneshot():
            listening = [one for one in psutil.Process(ours.living.pid).net_connections() if one.status == "LISTEN"]
        assert len(listening) == 1


def test_copies_of_a_new_listener_come_with_the_answer_and_again_to_who_has_none(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        assert ours.call(calls.Fork(number=1, config=config, has_copies=True)).listeners == 1
        assert ours.call(calls.Fork(number=2, config=config, has_copies=True)).listeners == 0
        assert ours.call(calls.Fork(number=3, config=config)).listeners == 1


def test_another_port_of_the_name_lets_go_of_the_first(tmp_path: Path) -> None:
    before, after = specialist(tmp_path), specialist(tmp_path, port=free_port())
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        old = ours.start(before)
        ours.start(after)
        ours.signal(old, signal.SIGKILL)
        ours.exit_of(old)
        assert answers(after.port)
        with pytest.raises(ConnectionRefusedError):
            answers(before.port)


def test_copies_come_after_a_fork_that_failed_too(tmp_path: Path) -> None:
    """With the copies of another port somebody would wait behind that one for ever."""
    denied, port = tmp_path / "denied", free_port()
    deny = "import errno, os\nfork = os.fork\ndef limited():\n"
    deny += f"    if os.path.exists({str(denied)!r}): raise OSError(errno.EAGAIN, 'no')\n    return fork()\nos.fork = limited\n"
    config = specialist(tmp_path)
    with fork_server(tmp_path, deny) as path, supervisor(path) as ours:
        ours.start(config)
        denied.touch()
        moved = calls.Fork(number=ours.next(), config=replace(config, port=port), has_copies=True)
        assert ours.call(moved).errno == errno.EAGAIN
        denied.unlink()
        assert ours.call(replace(moved, number=ours.next())).listeners == 1


def test_a_disk_that_takes_nothing_keeps_nobody_from_starting(tmp_path: Path) -> None:
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))\n"
    config = specialist(tmp_path)
    with fork_server(tmp_path, full) as path, supervisor(path) as ours:
        pid = ours.start(config)
        assert answers(config.port)
        assert ours.signal(pid, signal.SIGTERM).error is None
        assert ours.exit_of(pid).code == 0


def test_a_released_port_refuses(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        ours.signal(pid := ours.start(config), signal.SIGKILL)
        ours.exit_of(pid)
        ours.call(calls.Release(number=ours.next(), name=config.name))
        with pytest.raises(ConnectionRefusedError):
            answers(config.port)


@pytest.mark.parametrize(
    ("role", "code", "number"),
    [
        ("import os; os._exit(0)", 0, None),
        ("import os; os._exit(3)", 3, None),
        ("raise RuntimeError('broken')", 1, None),
        ("import os; os.kill(os.getpid(), 9)", None, 9),
    ],
)
def test_an_exit_comes_with_its_code_or_signal(tmp_path: Path, role: str, code: int | None, number: int | None) -> None:
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        pid = ours.start(specialist(tmp_path, role=role))
        exit_ = ours.exit_of(pid)
    assert (exit_.name, exit_.code, exit_.signal, exit_.asked) == ("apollo", code, number, False)


def test_what_a_crash_says_is_in_the_raw_output(tmp_path: Path) -> None:
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        ours.exit_of(ours.start(specialist(tmp_path, role="raise RuntimeError('broken')")))
    assert "RuntimeError: broken" in (tmp_path / "logs" / "apollo.out").read_text()


def test_an_end_that_was_asked_for_says_so(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        pid = ours.start(config)
        assert answers(config.port)
        ours.signal(pid, signal.SIGTERM)
        exit_ = ours.exit_of(pid)
    assert (exit_.code, exit_.asked) == (0, True)


def test_a_process_that_is_not_ours_is_not_signalled(tmp_path: Path) -> None:
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        assert ours.signal(os.getpid(), signal.SIGTERM).errno == errno.ESRCH


def test_the_next_supervisor_is_told_what_lives_and_how(tmp_path: Path) -> None:
    apollo, athena = specialist(tmp_path), specialist(tmp_path, "athena")
    with fork_server(tmp_path) as path:
        with supervisor(path) as first:
            ours = {first.start(apollo): apollo, first.start(athena): athena}
            assert answers(apollo.port)
            assert answers(athena.port)
            for pid, config in ours.items():
                first.signal(pid, signal.SIGUSR1 if config is athena else 0)
        with supervisor(path) as second:
            living = {one.pid: one for one in second.living.processes}
            assert second.living.held == ["apollo", "athena"]
    assert {pid: one.name for pid, one in living.items()} == {pid: config.name for pid, config in ours.items()}
    assert all(living[pid].fingerprint == calls.fingerprint(config) for pid, config in ours.items())
    assert [one.draining for one in living.values()] == [False, True]


def test_an_exit_is_told_to_every_supervisor_until_one_has_noted_it(tmp_path: Path) -> None:
    with fork_server(tmp_path) as path:
        with supervisor(path) as first:
            pid = first.start(specialist(tmp_path, role="import time, os; input_ = os.read(0, 1); time.sleep(60)"))
        os.kill(pid, signal.SIGKILL)
        wait_reaped(pid)
        for _ in range(2):  # whoever only looks whether it runs has not been told anything
            with supervisor(path) as looking:
                assert [one.pid for one in looking.living.exits] == [pid]
        with supervisor(path) as second:
            second.call(calls.Ping(number=1))  # and dies before it has made anything of it
        with supervisor(path) as third:
            assert [one.pid for one in third.living.exits] == [pid]
            third.call(calls.Noted(number=1, pid=pid))
        with supervisor(path) as fourth:
            assert fourth.living.exits == []


def test_an_exit_that_was_told_to_somebody_who_only_looked_is_not_lost(tmp_path: Path) -> None:
    with fork_server(tmp_path) as path:
        with supervisor(path) as first:
            pid = first.start(specialist(tmp_path))
        with supervisor(path) as looking:
            os.kill(pid, signal.SIGKILL)
            assert looking.exit_of(pid).signal == signal.SIGKILL
        with supervisor(path) as second:
            assert [one.pid for one in second.living.exits] == [pid]


def test_a_new_supervisor_supersedes_the_old_one(tmp_path: Path) -> None:
    with fork_server(tmp_path) as path, supervisor(path) as old, supervisor(path) as new:
        assert old.ended()
        assert new.fork(specialist(tmp_path)).error is None


def test_a_call_that_cannot_be_read_ends_that_connection_only(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path:
        with supervisor(path) as ours:
            pid = ours.start(config)
            ours.link.sendall(b'{"call":"from_the_future"}\n')
            assert ours.ended()
        with supervisor(path) as next_one:
            assert [one.pid for one in next_one.living.processes] == [pid]
        assert answers(config.port)


def test_lent_listeners_accept_for_the_borrower(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        ours.signal(pid := ours.start(config), signal.SIGKILL)
        ours.exit_of(pid)
        ours.link.sendall(calls.line(calls.Lend(number=9, name=config.name)))
        data, fds, _flags, _address = socket.recv_fds(ours.link, 65536, 8)
        answer = calls.decode_report(data.strip())
        assert isinstance(answer, Answered)
        assert answer.listeners == len(fds) == 1
        with socket.socket(fileno=fds[0]) as lent, socket.create_connection(("127.0.0.1", config.port)):
            lent.accept()[0].close()


def test_nothing_is_lent_of_a_port_that_is_not_held(tmp_path: Path) -> None:
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        assert ours.call(calls.Lend(number=1, name="apollo")).listeners == 0


def test_what_a_specialist_started_goes_with_it(tmp_path: Path) -> None:
    started = tmp_path / "started"
    role = f"import subprocess; open({str(started)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))"
    config = specialist(tmp_path, role=role)
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        pid = ours.start(config)
        assert answers(config.port)
        grandchild = int(started.read_text())
        os.kill(pid, signal.SIGKILL)
        ours.exit_of(pid)
        wait_gone(grandchild)


def test_term_ends_it_with_all_its_processes_even_stopped_ones(tmp_path: Path) -> None:
    configs = [specialist(tmp_path, name) for name in ("apollo", "athena")]
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        pids = [ours.start(config) for config in configs]
        assert all(answers(config.port) for config in configs)
        os.kill(pids[0], signal.SIGSTOP)
        os.kill(ours.living.pid, signal.SIGTERM)
        assert ours.ended()
        assert not any(psutil.pid_exists(pid) for pid in pids)


def test_one_that_ignores_term_is_killed_when_its_grace_is_over(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    role = f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(ready)!r}, 'w'); time.sleep(600)"
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        pid = ours.start(specialist(tmp_path, role=role, grace=0.1))
        deadline = time.monotonic() + 10
        while not ready.exists():
            assert time.monotonic() < deadline
        os.kill(ours.living.pid, signal.SIGTERM)
        assert ours.ended()
        assert not psutil.pid_exists(pid)


def test_who_was_taken_on_has_its_own_grace_when_all_is_ended(tmp_path: Path) -> None:
    last = tmp_path / "last"
    slow = f"import signal, time; signal.signal(15, lambda *_: (time.sleep(2.5), open({str(last)!r}, 'w'), exit()))"
    program = [sys.executable, "-c", f"{slow}; print(flush=True); time.sleep(600)"]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as stranger:
        assert stranger.stdout is not None
        stranger.stdout.readline()
        ticks = pidfiles.ticks_of(stranger.pid)
        process = replace(pidfiles.this_process(), name="apollo", pid=stranger.pid, ticks=ticks, grace=5.0)
        with fork_server(tmp_path) as path, supervisor(path) as ours:
            assert ours.call(calls.Adopt(number=ours.next(), process=process)).error is None
            os.kill(ours.living.pid, signal.SIGTERM)
            assert ours.ended()
        stranger.kill()
    assert last.exists()


def test_listeners_that_did_not_come_are_refused_and_nothing_falls(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        hold = calls.Hold(number=ours.next(), name="apollo", places=config.places)
        assert ours.call(hold).errno == errno.EMFILE
        ours.start(config)
        assert answers(config.port)


def test_a_listener_that_was_shut_down_listens_again_for_the_next_process(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    code = "import socket; socket.socket(fileno=3).shutdown(socket.SHUT_RDWR)"
    program = replace(config, command=[sys.executable, "-c", code])
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        ours.exit_of(ours.start(program))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", config.port), 5)
        ours.start(config)
        assert answers(config.port)


def test_a_program_has_what_it_is_given_and_no_second_copy(tmp_path: Path) -> None:
    said = tmp_path / "said"
    code = "import os, sys; print(*(os.readlink(f'/proc/self/fd/{one}') for one in range(3, 32) if os.path.exists("
    code += f"f'/proc/self/fd/{{one}}') or os.path.islink(f'/proc/self/fd/{{one}}')), file=open({str(said)!r}, 'w'))"
    config = replace(specialist(tmp_path), command=[sys.executable, "-c", code])
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        with socket.create_server(("127.0.0.1", config.port)) as one:
            call = calls.Hold(number=ours.next(), name="apollo", places=config.places)
            socket.send_fds(ours.link, [calls.line(call)], [one.fileno()])
            assert ours.answered().error is None
        ours.exit_of(ours.start(config))
    assert said.read_text().count("socket:") == 1


@pytest.mark.parametrize("stop_without_supervisor", [False, True])
def test_what_becomes_of_a_team_without_a_supervisor_is_a_policy(tmp_path: Path, stop_without_supervisor: bool) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path:
        with supervisor(path) as ours:
            pid = ours.start(config)
            assert answers(config.port)
            ours.call(calls.Policy(number=ours.next(), stop_without_supervisor=stop_without_supervisor))
            server = ours.living.pid
        if stop_without_supervisor:
            wait_gone(server)
            assert not psutil.pid_exists(pid)
        else:
            assert answers(config.port)


def test_fifty_restarts_leak_no_descriptor_and_leave_no_zombie(tmp_path: Path) -> None:
    config = specialist(tmp_path, role="import os; os._exit(0)")
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        ours.exit_of(ours.start(config))
        server = psutil.Process(ours.living.pid)
        the_spare(ours)
        before = server.num_fds()
        for _ in range(50):
            ours.exit_of(ours.start(config))
        the_spare(ours)
        assert server.num_fds() == before
        assert forked_by(server) == []


def test_a_term_right_after_the_fork_ends_the_child_and_nobody_else(tmp_path: Path) -> None:
    apollo, athena = specialist(tmp_path), specialist(tmp_path, "athena")
    with fork_server(tmp_path) as path, supervisor(path) as ours:
        ours.start(athena)
        for number in range(20):
            config = msgspec.structs.replace(apollo, description=str(number))
            ours.link.sendall(calls.line(calls.Fork(number=ours.next(), config=config)))
            pid = ours.answered().pid
            assert pid is not None
            ours.link.sendall(calls.line(calls.Signal(number=ours.next(), pid=pid, signal=signal.SIGTERM)))
            ours.answered()
            assert ours.exit_of(pid).asked
        assert answers(athena.port)
