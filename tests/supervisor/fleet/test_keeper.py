from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from keeping import SPIN_ON_WINCH, ask_health, fork_server, forked_by, gone, keeping, specialist

from protocol.client import connect
from protocol.errors import Busy, Draining, PeerError, Refused, Unavailable
from protocol.messages import Chat, StreamChunk, StreamEnd
from supervisor.fleet.calls import Process
from supervisor.fleet.health import Silent
from supervisor.fleet.inbox import MOST_COMMANDS, MOST_VERDICTS, Adopted, Command, Heard
from supervisor.fleet.lifecycle import State, Wanted
from supervisor.fleet.memory import MIB, YOUNG

QUICK: dict[str, Any] = {"health_period": 0.2, "hung_after": 0.6}
CRASH = "import os; os._exit(3)"
LIMIT = 150 * MIB
SWELL_ON_WINCH = """
import signal
signal.signal(signal.SIGWINCH, lambda *_, held=[]: held.append(b"x" * 300_000_000))
"""
# fork(2) says no for as long as a file is there.
FORK_FAILS = """
import errno, os
fork = os.fork
def limited():
    if os.path.exists({fuse!r}):
        raise OSError(errno.{number}, os.strerror(errno.{number}))
    return fork()
os.fork = limited
"""


def start() -> Command:
    return Command("start", "asked to start")


def stop(grace: float | None = None) -> Command:
    return Command("stop", "asked to stop", grace)


async def refused(port: int) -> None:
    """Returns when nobody listens there any more."""
    while True:
        try:
            await ask_health(port)
        except Refused:
            return
        except PeerError:
            pass  # it was accepted, or was about to be, by one that ends


async def ask(port: int, content: str = "hello") -> str:
    async with connect("127.0.0.1", port) as connection:
        answer = await connection.call(Chat(content=content))
    return str(getattr(answer, "content", ""))


# -- starting and stopping --------------------------------------------------------------------------------------------------


async def test_start_makes_it_answer(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path:
        async with keeping(path, config) as [kept]:
            kept.keeper.tell(start())
            pid = await kept.new_pid(None)
            assert (await ask_health(config.port)).pid == pid
            assert kept.status.wanted == "up"


async def test_stop_closes_the_port_and_start_opens_it_again(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path:
        async with keeping(path, config) as [kept]:
            kept.keeper.tell(start())
            first = await kept.new_pid(None)
            kept.keeper.tell(stop())
            stopped = await kept.until_state(State.STOPPED)
            assert stopped.last_exit is not None
            assert stopped.last_exit.cause == "stopped as asked"
            assert stopped.restarts == 0
            with pytest.raises(Refused):
                await ask_health(config.port)
            kept.keeper.tell(start())
            second = await kept.new_pid(first)
            assert (await ask_health(config.port)).pid == second


async def test_start_and_stop_a_second_time_change_nothing(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path:
        async with keeping(path, config) as [kept]:
            kept.keeper.tell(start())
            pid = await kept.new_pid(None)
            again = start()
            kept.keeper.tell(again)
            await again.taken.wait()
            assert kept.status.pid == pid
            for _ in range(2):
                kept.keeper.tell(stop())
            await kept.until_state(State.STOPPED)
            last = stop()
            kept.keeper.tell(last)
            await last.taken.wait()
            assert kept.keeper.is_gone


@pytest.mark.parametrize("last", ["start", "stop"])
async def test_of_contradictory_commands_the_last_one_holds(tmp_path: Path, last: str) -> None:
    config = specialist(tmp_path)
    commands = ["start", "stop", "restart", "stop", "start", "drain", "restart", "stop", "start", "stop"]
    with fork_server(tmp_path) as path:
        async with keeping(path, config) as [kept]:
            for verb in [*commands, last]:
                kept.keeper.tell(Command(verb, "asked"))  # type: ignore[arg-type]
            if last == "start":
                pid = await kept.new_pid(None)
                assert (await ask_health(config.port)).pid == pid
                await kept.until(lambda _: not kept.keeper.replaced)
                assert [one.pid for one in forked_by(psutil.Process(kept.living.pid))] == [pid]
            else:
                await kept.until(lambda _: kept.keeper.is_gone and kept.keeper.wanted is Wanted.DOWN)
                assert forked_by(psutil.Process(kept.living.pid)) == []
                with pytest.raises(Refused):
                    await ask_health(config.port)


async def test_a_stopped_process_can_be_asked_to_stop(tmp_path: Path) -> None:
    with fork_server(tmp_path) as path:
        async with keeping(path, specialist(tmp_path)) as [kept]:
            kept.keeper.tell(start())
            os.kill(await kept.new_pid(None), signal.SIGSTOP)
            kept.keeper.tell(stop())
            stopped = await kept.until_state(State.STOPPED)
    assert stopped.last_exit is not None
    assert stopped.last_exit.code == 0


async def test_one_that_ignores_term_is_killed_when_its_grace_is_over(tmp_path: Path) -> None:
    role = "import signal, asyncio; asyncio.unix_events._UnixSelectorEventLoop.add_signal_handler = lambda *_: None; "
    role += "signal.signal(15, signal.SIG_IGN)"
    with fork_server(tmp_path) as path:
        async with keeping(path, specialist(tmp_path, role=role), grace=0.1) as [kept]:
            kept.keeper.tell(start())
            await kept.new_pid(None)
            kept.keeper.tell(stop())
            stopped = await kept.until_state(State.STOPPED)
    assert stopped.last_exit is not None
    assert stopped.last_exit.signal == "SIGKILL"


# -- failing ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "cause"),
    [
        ("import os; os._exit(0)", "exited with code 0"),
        (CRASH, "exited with code 3"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
    ],
)
async def test_a_crash_loop_backs_off_and_then_fails_loudly(tmp_path: Path, role: str, cause: str) -> None:
    with fork_server(tmp_path) as path:
        async with keeping(path, specialist(tmp_path, role=role), intensity=3) as [kept]:
            kept.keeper.tell(start())
            await kept.until_state(State.BACKING_OFF)
            failed = await kept.until_state(State.FAILED)
    assert failed.restarts == 4
    assert failed.last_exit is not None
    assert failed.last_exit.cause == cause
    assert failed.last_error == f"{cause}; ended too often (4 times in 30 s)"
    assert failed.remedy == "chorus logs apollo"


async def test_while_it_has_failed_callers_are_told_when_to_come_again(tmp_path: Path) -> None:
    config = specialist(tmp_path, role=CRASH)
    with fork_server(tmp_path) as path:
        async with keeping(path, config, intensity=0) as [kept]:
            kept.keeper.tell(start())
            await kept.until_state(State.FAILED)
            with pytest.raises(Unavailable) as raised:
                await ask(config.port)
    assert "exited with code 3" in raised.value.sentence
    assert raised.value.retry_after is not None
    assert 40 < raised.value.retry_after < 80


async def test_start_gives_a_failed_one_another_chance(tmp_path: Path) -> None:
    fuse = tmp_path / "fuse"
    fuse.touch()
    config = specialist(tmp_path, role=f"import os; os.path.exists({str(fuse)!r}) and os._exit(3)")
    with fork_server(tmp_path) as path:
        async with keeping(path, config, intensity=1) as [kept]:
            kept.keeper.tell(start())
            await kept.until_state(State.FAILED)
            kept.keeper.tell(start())
            await kept.until_state(State.STARTING)
            await kept.until_state(State.FAILED)  # its record was cleared: it took more than one failure
            assert kept.status.restarts == 4
            fuse.unlink()
            kept.keeper.tell(start())
            await kept.new_pid(None)
            assert await ask(config.port)
            assert kept.status.last_error is None


@pytest.mark.parametrize("verb", ["stop", "restart", "start", "drain"])
async def test_a_command_in_the_middle_of_a_crash_loop_is_carried_out(tmp_path: Path, verb: str) -> None:
    with fork_server(tmp_path) as path:
        async with keeping(path, specialist(tmp_path, role=CRASH), intensity=100) as [kept]:
            kept.keeper.tell(start())
            await kept.until(lambda one: one.restarts >= 3)
            command = Command(verb, "asked")  # type: ignore[arg-type]
            kept.keeper.tell(command)
            with anyio.fail_after(5):
                await command.taken.wait()
            if verb == "stop":
                await kept.until(lambda _: kept.keeper.is_gone)
            else:
                restarts = kept.status.restarts
                await kept.until(lambda one: one.restarts > restarts)


async def test_never_is_never_restarted_and_says_how_to_start_it(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path:
        async with keeping(path, config, policy="never") as [kept]:
            kept.keeper.tell(start())
            os.kill(await kept.new_pid(None), signal.SIGKILL)
            failed = await kept.until_state(State.FAILED)
            assert failed.restarts == 0
            with pytest.raises(Unavailable, match="killed by SIGKILL; chorus start apollo"):
                await ask(config.port)
            kept.keeper.tell(start())
            await kept.new_pid(None)


@pytest.mark.parametrize(("code", "state"), [(0, State.FAILED), (3, State.BACKING_OFF)])
async def test_on_failure_leaves_a_clean_end_at_that(tmp_path: Path, code: int, state: State) -> None:
    config = specialist(tmp_path, role=f"import os; os._exit({code})")
    with fork_server(tmp_path) as path:
        async with keeping(path, config, policy="on_failure", intensity=100) as [kept]:
            kept.keeper.tell(start())
            await kept.until(lambda one: one.state == state.value and one.restarts == (code and 3))


async def test_the_cause_of_an_end_is_that_process_s_own(tmp_path: Path) -> None:
    with fork_server(tmp_path) as path:
        async with keeping(path, specialist(tmp_path), **QUICK) as [kept]:
            kept.keeper.tell(start())
            first = await kept.new_pid(None)
            os.kill(first, signal.SIGSTOP)
            second = await kept.new_pid(first)
            hung = kept.status.last_exit
            os.kill(second, signal.SIGKILL)
            await kept.new_pid(second)
            killed = kept.status.last_exit
    assert hung is not None
    assert hung.cause.startswith("hung: no answer for ")
    assert killed is not None
    assert killed.cause == "killed by SIGKILL"


# -- hanging ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "number"), [("", signal.SIGSTOP), (SPIN_ON_WINCH, signal.SIGWINCH)])
async def test_one_that_hangs_leaves_its_stacks_and_is_replaced(
    tmp_path: Path, role: str, number: signal.Signals
) -> None:
    config = specialist(tmp_path, role=role)
    with fork_server(tmp_path) as path:
        async with keeping(path, config, **QUICK) as [kept]:
            kept.keeper.tell(start())
            first = await kept.new_pid(None)
            os.kill(first, number)
            await kept.until_state(State.HUNG)
            second = await kept.new_pid(first)
            await gone(first)
            assert (await ask_health(config.port)).pid == second
            assert kept.status.restarts == 1
    assert 'File "' in (tmp_path / "logs" / "apollo.out").read_text()
    assert "is hung (no answer for" in (tmp_path / "logs" / "apollo.log").read_text()


async def test_what_a_hung_one_had_started_goes_with_it(tmp_path: Path) -> None:
    started = tmp_path / "started"
    role = f"import subprocess; open({str(started)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))"
    with fork_server(tmp_path) as path:
        async with keeping(path, specialist(tmp_path, role=role), **QUICK) as [kept]:
            kept.keeper.tell(start())
            first = await kept.new_pid(None)
            grandchild = int(started.read_text())
            os.kill(first, signal.SIGSTOP)
            await gone(first)
            await gone(grandchild)
            await kept.new_pid(first)


async def test_hung_ones_are_replaced_one_after_the_other_where_the_brake_says_so(tmp_path: Path) -> None:
    configs = [specialist(tmp_path, name) for name in ("apollo", "athena", "metis")]
    ends: list[str] = []
    with fork_server(tmp_path) as path:
        async with keeping(path, *configs, brake=1, **QUICK) as all_kept:
            for kept in all_kept:
                kept.keeper.tell(start())
            old = {kept.keeper.name: await kept.new_pid(None) for kept in all_kept}
            async with all_kept[0].registry.watch() as watcher:
                changes = watcher.changes()
                for pid in old.values():
                    os.kill(pid, signal.SIGSTOP)
                with anyio.fail_after(20):
                    while len(ends) < 6:
                        change = await anext(changes)
                        to = getattr(change, "to", "")
                        if to in ("backing_off", "ready"):
                            ends.append(to)
                await changes.aclose()
    assert ends == ["backing_off", "ready"] * 3


# -- draining, restarting -----------------------------------------------------------------------------------------------------


async def test_drain_refuses_new_requests_and_start_takes_them_again(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path:
        async with keeping(path, config) as [kept]:
            kept.keeper.tell(start())
            first = await kept.new_pid(None)
            kept.keeper.tell(Command("drain", "asked"))
            await kept.until_state(State.DRAINING)
            with pytest.raises(Draining):
                await ask(config.port)
            assert (await ask_health(config.port)).pid == first
            kept.keeper.tell(start())
            await kept.new_pid(first)
            assert await ask(config.port)


async def test_drain_of_one_that_only_begins_does_not_end_it(tmp_path: Path) -> None:
    with fork_server(tmp_path) as path:
        async with keeping(path, specialist(tmp_path)) as [kept]:
            kept.keeper.tell(start())
            kept.keeper.tell(Command("drain", "asked"))
            drained = await kept.until_state(State.DRAINING)
    assert drained.restarts == 0


async def test_one_that_was_drained_is_drained_again_after_a_crash(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path:
        async with keeping(path, config) as [kept]:
            kept.keeper.tell(start())
            first = await kept.new_pid(None)
            kept.keeper.tell(Command("drain", "asked"))
            await kept.until_state(State.DRAINING)
            os.kill(first, signal.SIGKILL)
            await kept.until(lambda one: one.state == "draining" and one.pid != first)
            with pytest.raises(Draining):
                await ask(config.port)


async def test_restart_lets_the_old_conversation_end_while_the_new_process_answers(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path:
        async with keeping(path, config) as [kept]:
            kept.keeper.tell(start())
            first = await kept.new_pid(None)
            async with connect("127.0.0.1", config.port) as connection:
                replies = connection.ask(Chat(content="one two three " * 10, stream=True))
                while not isinstance(await anext(replies), StreamChunk):
                    pass
                kept.keeper.tell(Command("restart", "asked"))
                second = await kept.new_pid(first)
                assert (await ask_health(config.port)).pid == second
                last = [reply async for reply in replies][-1]
            assert isinstance(last, StreamEnd)
            assert last.done_reason == "stop"
            await gone(first)
            await kept.until(lambda _: not kept.keeper.replaced)
            assert kept.status.restarts == 0


async def test_stop_with_a_short_grace_cuts_a_stream_and_keeps_its_partial_text(tmp_path: Path) -> None:
    config = specialist(tmp_path, grace=60.0)
    with fork_server(tmp_path) as path:
        async with keeping(path, config, grace=60.0) as [kept]:
            kept.keeper.tell(start())
            await kept.new_pid(None)
            async with connect("127.0.0.1", config.port) as connection:
                replies = connection.ask(Chat(content="one two three " * 500, stream=True))
                while not isinstance(await anext(replies), StreamChunk):
                    pass
                kept.keeper.tell(stop())
                await kept.until_state(State.STOPPING)
                kept.keeper.tell(stop(grace=0.1))
                with pytest.raises(Draining) as raised, anyio.fail_after(10):
                    async for _reply in replies:
                        pass
            assert raised.value.partial
            await kept.until_state(State.STOPPED)


async def test_nobody_is_refused_while_it_is_killed_again_and_again(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    answered, refused, lost, over = 0, 0, 0, threading.Event()

    def hammer() -> None:
        nonlocal answered, refused, lost
        while not over.is_set():
            try:
                with socket.create_connection(("127.0.0.1", config.port), 10) as stream:
                    stream.sendall(b'{"type":"ping","close":true}\n')
                    if b"pong" in stream.recv(4096):
                        answered += 1
                    else:
                        lost += 1  # it had been accepted by the one that was killed
            except ConnectionRefusedError:
                refused += 1
            except ConnectionError:
                lost += 1

    with fork_server(tmp_path) as path:
        async with keeping(path, config, intensity=1000) as [kept]:
            kept.keeper.tell(start())
            pid = await kept.new_pid(None)
            hammering = [threading.Thread(target=hammer) for _ in range(2)]
            for thread in hammering:
                thread.start()
            try:
                for _ in range(20):
                    os.kill(pid, signal.SIGKILL)
                    pid = await kept.new_pid(pid)
                    again = start()  # clears its record, so that the next restart comes at once too
                    kept.keeper.tell(again)
                    await again.taken.wait()
            finally:
                over.set()
                for thread in hammering:
                    await anyio.to_thread.run_sync(thread.join)
            assert kept.status.restarts == 20
            assert kept.status.last_exit is not None
            assert kept.status.last_exit.cause == "killed by SIGKILL"
    assert refused == 0
    assert answered > 20
    assert lost <= 20 * 2


# -- the grace of a stop ------------------------------------------------------------------------------------------------------


async def test_a_grace_longer_than_its_own_is_honoured(tmp_path: Path) -> None:
    config = specialist(tmp_path, grace=0.1)
    with fork_server(tmp_path) as path:
        async with keeping(path, config, grace=0.1) as [kept]:
            kept.keeper.tell(start())
            await kept.new_pid(None)
            async with connect("127.0.0.1", config.port) as connection:
                replies = connection.ask(Chat(content="one two three " * 20, stream=True))
                while not isinstance(await anext(replies), StreamChunk):
                    pass
                kept.keeper.tell(stop(grace=30.0))
                await kept.until_state(State.STOPPING)
                with anyio.fail_after(5):
                    await refused(config.port)  # at once, whatever the grace
                with anyio.fail_after(20):
                    last = [reply async for reply in replies][-1]
            assert isinstance(last, StreamEnd)
            assert last.done_reason == "stop"
            await kept.until_state(State.STOPPED)


@pytest.mark.parametrize(("first", "second", "is_cut"), [(60.0, 0.1, True), (0.5, 60.0, False)])
async def test_of_two_graces_the_last_one_holds(tmp_path: Path, first: float, second: float, is_cut: bool) -> None:
    config = specialist(tmp_path, grace=0.2)
    with fork_server(tmp_path) as path:
        async with keeping(path, config, grace=0.2) as [kept]:
            kept.keeper.tell(start())
            await kept.new_pid(None)
            async with connect("127.0.0.1", config.port) as connection:
                replies = connection.ask(Chat(content="one two three " * 20, stream=True))
                while not isinstance(await anext(replies), StreamChunk):
                    pass
                kept.keeper.tell(stop(grace=first))
                kept.keeper.tell(stop(grace=second))
                with anyio.fail_after(20):
                    if is_cut:
                        with pytest.raises(Draining):
                            [reply async for reply in replies]
                    else:
                        assert isinstance([reply async for reply in replies][-1], StreamEnd)
            await kept.until_state(State.STOPPED)


# -- memory -------------------------------------------------------------------------------------------------------------------


async def test_one_with_too_much_memory_is_replaced_when_it_is_idle_and_that_is_no_failure(tmp_path: Path) -> None:
    config = specialist(tmp_path, role=SWELL_ON_WINCH)
    with fork_server(tmp_path) as path:
        async with keeping(path, config, max_rss_bytes=LIMIT, **QUICK) as [kept]:
            kept.keeper.tell(start())
            first = await kept.new_pid(None)
            kept.keeper._processes._now.started -= YOUNG  # type: ignore[union-attr]
            async with connect("127.0.0.1", config.port) as connection:
                replies = connection.ask(Chat(content="one two three " * 20, stream=True))
                while not isinstance(await anext(replies), StreamChunk):
                    pass
                os.kill(first, signal.SIGWINCH)
                waiting = await kept.until(lambda one: one.notice is not None)
                assert waiting.pid == first
                assert waiting.notice is not None
                assert waiting.notice.endswith("more than 150 MiB: it is replaced as soon as it is idle")
                last = [reply async for reply in replies][-1]
            assert isinstance(last, StreamEnd)
            second = await kept.new_pid(first)
            await gone(first)
            assert (await ask_health(config.port)).pid == second
            seen = kept.status
    assert (seen.recycled, seen.restarts, seen.attempt) == (1, 0, 0)
    assert seen.notice is None
    assert seen.started_because is not None
    assert seen.started_because.startswith("recycled: ")
    assert f"started, pid {second}: {seen.started_because}" in (tmp_path / "logs" / "apollo.log").read_text()


async def test_a_limit_below_what_a_new_process_has_is_said_once_and_restarts_nobody(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path:
        async with keeping(path, config, max_rss_bytes=1_048_576, **QUICK) as [kept]:
            kept.keeper.tell(start())
            first = await kept.new_pid(None)
            told = await kept.until(lambda one: one.notice is not None)
            assert told.pid == first
            assert told.notice is not None
            assert "max_rss_bytes is too low for it" in told.notice
            kept.keeper.tell(Command("restart", "asked"))
            second = await kept.new_pid(first)
            told = await kept.until(lambda one: one.notice is not None)
            assert (told.pid, told.recycled) == (second, 0)
    assert (tmp_path / "logs" / "apollo.log").read_text().count("max_rss_bytes is too low") == 1


# -- what the machine does not give -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "fact"), [("EAGAIN", "as many run as may"), ("ENOMEM", "memory is used up")])
async def test_when_fork_fails_it_says_why_and_starts_as_soon_as_it_can(tmp_path: Path, number: str, fact: str) -> None:
    fuse = tmp_path / "fuse"
    with fork_server(tmp_path, FORK_FAILS.format(fuse=str(fuse), number=number)) as path:
        async with keeping(path, specialist(tmp_path)) as [kept]:
            fuse.touch()
            kept.keeper.tell(start())
            blocked = await kept.until(lambda one: one.state == "backing_off" and kept.keeper._record.blocked > 2)
            assert blocked.last_error is not None
            assert fact in blocked.last_error
            assert blocked.remedy is not None
            assert "under systemd" in blocked.remedy
            fuse.unlink()
            first = await kept.new_pid(None, within=4.0)
            assert (kept.status.restarts, kept.status.last_error) == (0, None)
            fuse.touch()
            again = Command("restart", "asked")
            kept.keeper.tell(again)
            await again.taken.wait()
            assert kept.status.pid == first  # no successor is no reason to lose what runs
            os.kill(first, signal.SIGKILL)
            await kept.until(lambda one: one.state == "backing_off" and kept.keeper._record.blocked > 1)
            fuse.unlink()
            await kept.new_pid(first, within=4.0)


# -- ports --------------------------------------------------------------------------------------------------------------------


async def test_a_port_that_a_stranger_holds_is_named_and_taken_when_it_is_free(tmp_path: Path) -> None:
    with fork_server(tmp_path) as path, socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        async with keeping(path, specialist(tmp_path, port=port)) as [kept]:
            kept.keeper.tell(start())
            blocked = await kept.until_state(State.BACKING_OFF)
            assert blocked.last_error is not None
            assert blocked.last_error.startswith(f"port {port} is held by pid {os.getpid()} (")
            assert blocked.remedy is not None
            assert "specialists.apollo.port" in blocked.remedy
            assert not blocked.has_port
            stranger.close()
            await kept.new_pid(None)
            assert kept.status.last_error is None
            assert kept.status.has_port
            assert kept.status.restarts == 0


async def test_an_address_that_cannot_be_had_says_so(tmp_path: Path) -> None:
    config = specialist(tmp_path, addresses=["192.0.2.1"])
    with fork_server(tmp_path) as path:
        async with keeping(path, config) as [kept]:
            kept.keeper.tell(start())
            blocked = await kept.until_state(State.BACKING_OFF)
    assert blocked.last_error is not None
    assert "cannot be bound" in blocked.last_error


# -- adopting -----------------------------------------------------------------------------------------------------------------


async def test_what_lives_is_adopted_as_it_is(tmp_path: Path) -> None:
    configs = [specialist(tmp_path, name) for name in ("apollo", "athena")]
    with fork_server(tmp_path) as path:
        async with keeping(path, *configs) as before:
            for kept in before:
                kept.keeper.tell(start())
            old = [await kept.new_pid(None) for kept in before]
            before[1].keeper.tell(Command("drain", "asked"))
            await before[1].until_state(State.DRAINING)
        async with keeping(path, *configs) as [apollo, athena]:
            assert await apollo.new_pid(None) == old[0]
            drained = await athena.until_state(State.DRAINING)
            assert drained.pid == old[1]
            assert apollo.status.uptime is not None


async def test_one_that_was_being_stopped_is_not_adopted_and_not_cut_short(tmp_path: Path) -> None:
    config = specialist(tmp_path, grace=60.0)
    with fork_server(tmp_path) as path:
        async with AsyncExitStack() as stack:
            async with keeping(path, config, grace=60.0) as [kept]:
                kept.keeper.tell(start())
                first = await kept.new_pid(None)
                connection = await stack.enter_async_context(connect("127.0.0.1", config.port))
                replies = connection.ask(Chat(content="one two three " * 20, stream=True))
                while not isinstance(await anext(replies), StreamChunk):
                    pass
                asked = stop()
                kept.keeper.tell(asked)
                await asked.taken.wait()
            async with keeping(path, config, grace=60.0) as [kept]:
                kept.keeper.tell(start())
                await kept.new_pid(first)
                with anyio.fail_after(20):
                    last = [reply async for reply in replies][-1]
                assert isinstance(last, StreamEnd)
                await gone(first)


async def test_one_of_another_configuration_is_replaced(tmp_path: Path) -> None:
    before, after = specialist(tmp_path), specialist(tmp_path)
    with fork_server(tmp_path) as path:
        async with keeping(path, before) as [kept]:
            kept.keeper.tell(start())
            first = await kept.new_pid(None)
        async with keeping(path, after) as [kept]:
            second = await kept.new_pid(first)
            await kept.until(lambda _: not kept.keeper.replaced)
            await gone(first)
            assert (await ask_health(after.port)).pid == second
            with pytest.raises(Refused):
                await ask_health(before.port)


async def test_of_two_with_one_name_the_newer_stays(tmp_path: Path) -> None:
    config = specialist(tmp_path)
    with fork_server(tmp_path) as path:
        async with keeping(path, config) as [kept]:
            old, new = [await kept.link.fork(config) for _ in range(2)]
        async with keeping(path, config) as [kept]:
            assert await kept.new_pid(None) == new
            await gone(old)


# -- its inbox ----------------------------------------------------------------------------------------------------


async def test_verdicts_are_left_out_while_the_fork_server_does_not_answer(tmp_path: Path) -> None:
    with fork_server(tmp_path) as path:
        async with keeping(path, specialist(tmp_path)) as [kept]:
            os.kill(kept.living.pid, signal.SIGSTOP)
            try:
                kept.keeper.tell(start())
                for _ in range(5000):
                    kept.keeper.tell(Heard(1, Silent(1.0)))
                waiting = kept.keeper.inbox._send.statistics().current_buffer_used
            finally:
                os.kill(kept.living.pid, signal.SIGCONT)
            await kept.new_pid(None)
    assert waiting == MOST_VERDICTS


async def test_too_many_commands_are_refused_and_exits_have_room(tmp_path: Path) -> None:
    with fork_server(tmp_path) as path:
        async with keeping(path, specialist(tmp_path)) as [kept]:
            os.kill(kept.living.pid, signal.SIGSTOP)
            try:
                for _ in range(MOST_COMMANDS + 1):  # the first goes straight to the keeper
                    kept.keeper.tell(stop())
                with pytest.raises(Busy):
                    kept.keeper.tell(start())
                kept.keeper.tell(Adopted(Process(name="apollo", pid=1, started=0.0, stopping=True)))
            finally:
                os.kill(kept.living.pid, signal.SIGCONT)


async def test_nobody_waits_for_a_command_to_a_keeper_that_is_over(tmp_path: Path) -> None:
    with fork_server(tmp_path) as path:
        async with keeping(path, specialist(tmp_path)) as [kept]:
            os.kill(kept.living.pid, signal.SIGSTOP)
            waiting = [start(), start()]
            for command in waiting:
                kept.keeper.tell(command)
            pid = kept.living.pid
        os.kill(pid, signal.SIGCONT)
        late = start()
        kept.keeper.tell(late)
    assert kept.keeper.inbox.is_closed
    assert all(command.taken.is_set() for command in [*waiting, late])
