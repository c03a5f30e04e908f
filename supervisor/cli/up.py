"""`chorus up` and `chorus down`: the team as a whole."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from protocol.names import GATEWAY
from supervisor.cli import look
from supervisor.cli.context import arguments, invocation, settings_of, surroundings_of
from supervisor.cli.exits import Exit, Failure, not_running
from supervisor.config import Loaded, load

if TYPE_CHECKING:
    from protocol.client import ControlConnection

SUPERVISOR_WITHIN = 30.0  # seconds for the supervisor's socket to answer
ANSWERS_WITHIN = 5.0  # seconds; one that does not even say how the team is will not end it either
LOOK_EVERY = 0.02  # seconds between two looks at a supervisor that is coming up
NAMED_AFTER = 2.0  # seconds of waiting for an end until it is said whose


@click.command("up")
@click.option("--foreground", is_flag=True, help="Be the supervisor: stay in this terminal, or under systemd.")
@click.option("--wait-timeout", type=float, default=60.0, show_default=True, help="Seconds to wait for everybody.")
@click.option("--ready-fd", type=int, hidden=True)
@click.pass_context
def up_command(ctx: click.Context, foreground: bool, wait_timeout: float, ready_fd: int | None) -> int:
    """Start the team and show it."""
    began = time.monotonic()
    loaded = settings_of(ctx)
    if foreground:
        return _be_the_supervisor(ctx, loaded, ready_fd)
    started = _start_detached(ctx, loaded)
    import anyio

    return anyio.run(_show_the_start, loaded, wait_timeout, started, began)


@click.command("down")
@click.option("--grace", type=float, help="Seconds for answers that are under way.")
@click.option("--own", is_flag=True, hidden=True, help="Not the system's team, where ours does not run.")
@click.option(
    "--unless-restarted", is_flag=True, hidden=True, help="For ExecStopPost: as --own, but not after a crash."
)
@click.pass_context
def down_command(ctx: click.Context, grace: float | None, own: bool, unless_restarted: bool) -> int:
    """Stop the team; answers that are under way are finished first."""
    import anyio

    loaded = surroundings_of(ctx)
    if unless_restarted and is_restarted(loaded, invocation(ctx).environ):
        click.echo("the supervisor is started again: the specialists are kept", err=True)
        return Exit.DONE
    return anyio.run(_down, loaded, grace, own or unless_restarted)


def is_restarted(loaded: Loaded, environ: Mapping[str, str]) -> bool:
    """Whether systemd starts the supervisor anew that has just ended, as it tells ExecStopPost (systemd.exec(5)).

    It does after whatever ends a process against its will, unless the end was asked for: then the supervisor had written
    that down, or would not hear and was killed when its time to stop was over.
    """
    from supervisor.fleet.registry import read_journal

    before = read_journal(loaded.dirs.state / "registry.json")
    was_to_end = before is None or before.supervisor.state != "running"
    return environ.get("SERVICE_RESULT", "success") not in ("success", "timeout") and not was_to_end


def _be_the_supervisor(ctx: click.Context, loaded: Loaded, ready_fd: int | None) -> int:
    from supervisor.app import run
    from supervisor.errors import AlreadyRunning, NoServiceManager

    try:
        call = invocation(ctx)
        reread = partial(load, call.flags, call.config_file, call.environ)
        run(loaded, reread, ready_fd=ready_fd, to_stderr=ready_fd is None)
    except NoServiceManager as error:
        raise Failure(str(error), Exit.USAGE) from None
    except AlreadyRunning as error:
        raise Failure(str(error), Exit.FAILED, remedy="chorus status", code="already_running") from None
    return Exit.DONE


def _start_detached(ctx: click.Context, loaded: Loaded) -> bool:
    """Starts a supervisor unless one runs; returns whether it did. It outlives this terminal."""
    import subprocess

    from supervisor.places import private_folder

    if lock_is_held(loaded) and not _has_gone_down(loaded):
        return False
    flags = arguments(invocation(ctx))
    ready, theirs = os.pipe()
    log = private_folder(loaded.dirs.logs) / "supervisor.out"
    with log.open("ab") as output:
        process = subprocess.Popen(
            # -P: a folder called supervisor or daemon where somebody happens to stand is not ours.
            [sys.executable, "-P", "-m", "supervisor.cli", *flags, "up", "--foreground", "--ready-fd", str(theirs)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[theirs],
            start_new_session=True,
        )
    os.close(theirs)
    with os.fdopen(ready, "rb") as pipe:
        is_ready = bool(pipe.read())  # ends when the supervisor answers, or dies without a word
    if not is_ready:
        process.wait()
        if lock_is_held(loaded):
            return False  # somebody else's `up` was faster
        tail = _tail(log)
        raise Failure(f"the supervisor ended at once: {tail}", Exit.FAILED, remedy=f"read {log}")
    return True


def _has_gone_down(loaded: Loaded) -> bool:
    """Waits for a supervisor that is on its way down; False at once for one that stays."""
    from supervisor.cli.reach import glance

    try:
        if glance(loaded, None).supervisor.state != "stopping":
            return False
    except Failure:
        return False
    click.echo("waiting for the team to go down", err=True)
    while lock_is_held(loaded):
        time.sleep(LOOK_EVERY)
    return True


def lock_is_held(loaded: Loaded) -> bool:
    import fcntl

    try:
        with (loaded.dirs.state / "supervisor.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _tail(log: Path) -> str:
    lines = [
        line for line in log.read_text(errors="replace").splitlines() if line.strip() and not line.startswith("  do: ")
    ]
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


async def _until_it_answers(loaded: Loaded) -> None:
    """Returns when a supervisor that somebody else has just started can be asked, or is not there any more."""
    import anyio

    from supervisor.cli.reach import supervisor

    with anyio.move_on_after(SUPERVISOR_WITHIN):
        while lock_is_held(loaded):
            try:
                async with supervisor(loaded):
                    return
            except Failure:
                await anyio.sleep(LOOK_EVERY)


async def _show_the_start(loaded: Loaded, wait_timeout: float, started: bool, began: float) -> int:
    """Follows the team until everybody is settled, then prints the status."""
    import anyio

    from protocol.control import Snapshot, Transition, Watch
    from supervisor.cli.reach import report, supervisor
    from supervisor.cli.status import print_status

    states: dict[str, str] = {}
    with anyio.move_on_after(wait_timeout) as patience:
        if not started:
            await _until_it_answers(loaded)
        async with supervisor(loaded) as connection:
            async for change in connection.ask(Watch()):
                if isinstance(change, Snapshot):
                    team = [one for one in change.status.everybody if one.wanted != "down"]
                    states = {one.name: _seen(one.name, one.state, one.attempt) for one in team}
                    if not started:
                        pid = change.status.supervisor.pid
                        click.echo(f"already running (pid {pid})", err=True)
                elif isinstance(change, Transition) and change.name in states:
                    states[change.name] = _seen(change.name, change.to, change.attempt)
                _progress(states)
                if all(state in _SETTLED for state in states.values()):
                    break
    _progress_end()
    status = await report(loaded)
    print_status(status)
    gateway = states.pop(GATEWAY, None)
    ready = sum(state in _ANSWERS for state in states.values())
    if started:
        took = time.monotonic() - began
        click.echo(f"{ready} of {len(states)} specialists are up, after {took:.1f} s", err=True)
    if gateway in _ANSWERS:
        click.echo(f"the gateway is up: {status.gateway.url}", err=True)
    elif gateway is not None:
        click.echo(f"the gateway is not up: {status.gateway.last_error or status.gateway.state}", err=True)
    if patience.cancelled_caught:
        raise Failure(f"not everybody was up after {wait_timeout:g} s", Exit.TIMEOUT, remedy="chorus status --watch")
    is_whole = ready == len(states) and (gateway is None or gateway in _ANSWERS)
    return Exit.DONE if is_whole else Exit.PARTIAL


_ANSWERS = frozenset({"ready", "degraded"})
_BLOCKED = "blocked"
_SETTLED = _ANSWERS | {"failed", "draining", _BLOCKED}


def _seen(name: str, state: str, attempt: int) -> str:
    """The state of somebody. A gateway whose port is taken may be without it for ever: the team does not wait for that."""
    return _BLOCKED if name == GATEWAY and state == "backing_off" and attempt == 0 else state


def _progress(states: dict[str, str]) -> None:
    """One line that counts, on a terminal only."""
    if not sys.stderr.isatty():
        return
    ready = sum(state in _SETTLED for state in states.values())
    waiting = [name for name, state in states.items() if state not in _SETTLED]
    text = f"starting {ready}/{len(states)}" + (f", waiting for {', '.join(waiting)}" if len(waiting) < 6 else "")
    sys.stderr.write("\r" + text[: look.width(sys.stderr) - 1].ljust(look.width(sys.stderr) - 1))
    sys.stderr.flush()


def _progress_end() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r" + " " * (look.width(sys.stderr) - 1) + "\r")
        sys.stderr.flush()


async def _down(loaded: Loaded, grace: float | None, own: bool) -> int:
    import anyio

    from supervisor.cli.reach import supervisor
    from supervisor.fleet.registry import read_journal

    try:
        async with supervisor(loaded, own=own) as connection:
            stopped = await _take_down(connection, grace)
    except Failure:
        before = read_journal(loaded.dirs.state / "registry.json")
        if before and before.supervisor.restarter == "systemd" and before.supervisor.state == "running":
            click.echo(
                "the supervisor is not running; the specialists are systemd's: stop chorus-specialists.target", err=True
            )
            return Exit.DONE
        left = await anyio.to_thread.run_sync(end_leftovers, loaded)
        if left or not own:  # a unit's journal has no need to know that all is as it should be
            ended = f"; ended {left} processes that a dead supervisor left" if left else ""
            click.echo(f"the team is not running{ended}", err=True)
        return Exit.DONE
    with anyio.move_on_after(SUPERVISOR_WITHIN):
        while lock_is_held(loaded):  # noqa: ASYNC110 - another process's end: the lock is all there is to look at
            await anyio.sleep(0.01)
    click.echo(f"the team is down, {stopped} specialists stopped", err=True)
    return Exit.DONE


async def _take_down(connection: ControlConnection, grace: float | None) -> int:
    """Has the team go down; says who has ended and, after a while, for whom it waits. Returns how many specialists ended."""
    import anyio

    from protocol.control import Progress, Shutdown, Status
    from protocol.errors import ConnectionLost

    stopped = 0
    waiting: dict[str, None] = {}

    async def say_for_whom() -> None:
        await anyio.sleep(NAMED_AFTER)
        if waiting:
            names = ", ".join(waiting)
            click.echo(f"waiting for {names}: what is under way is finished first  do: chorus down --grace 0", err=True)

    async def follow() -> None:
        nonlocal stopped
        async for answer in connection.ask(Shutdown(grace=grace)):
            if isinstance(answer, Progress) and answer.to == "stopping":
                waiting[answer.name] = None
            elif isinstance(answer, Progress) and answer.to == "stopped":
                waiting.pop(answer.name, None)
                stopped += answer.name != GATEWAY
                cut = "" if "code 0" in answer.cause else f" ({answer.cause})"
                click.echo(f"stopped {answer.name}{cut}", err=True)
        await connection.receive()

    try:
        with anyio.fail_after(ANSWERS_WITHIN):
            await connection.call(Status(names=[]))
    except TimeoutError:
        raise not_running(f"the supervisor does not answer within {ANSWERS_WITHIN:g} s") from None
    except ConnectionLost:
        return 0  # it was on its way down
    async with anyio.create_task_group() as saying:
        saying.start_soon(say_for_whom)
        with suppress(ConnectionLost):  # its end is what we wait for
            await follow()
        saying.cancel_scope.cancel()
    return stopped


def end_leftovers(loaded: Loaded) -> int:
    """Ends what a supervisor that was killed left behind; returns how many processes there were.

    A supervisor that lives and cannot be reached, since its socket was removed or is not there yet, ends with its team.
    """
    import signal

    import anyio

    from supervisor.app import lock_holder
    from supervisor.tenure import end_left_behind

    ended = 0
    if lock_is_held(loaded) and (pid := lock_holder(loaded)):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)  # a stopped one does not hear the first
        deadline = time.monotonic() + SUPERVISOR_WITHIN
        while lock_is_held(loaded) and time.monotonic() < deadline:
            time.sleep(0.01)
        if lock_is_held(loaded):
            os.kill(pid, signal.SIGKILL)
        ended = 1
    return ended + anyio.run(end_left_behind, loaded)
