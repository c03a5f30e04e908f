from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest

from supervisor.errors import CannotStart, ForkServerLost
from supervisor.fleet import calls, launch
from supervisor.fleet.calls import Answered, Exited, Living
from supervisor.fleet.copies import Copies
from supervisor.fleet.link import Link, connected

LIVING = Living(pid=1, processes=[], held=[], exits=[])
EXIT = Exited(name="apollo", pid=7, code=0, signal=None, at=1.0)


class Scripted:
    """A fork server that says what a test has it say."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.exits: list[Exited] = []

    async def hear(self) -> calls.AnyCall:
        await anyio.wait_readable(self.stream)
        call: calls.AnyCall = calls.decode_call(self.stream.recv(65536).split(b"\n")[0])
        return call

    def say(self, *reports: calls.AnyReport) -> None:
        self.stream.sendall(b"".join(calls.line(report) for report in reports))


@asynccontextmanager
async def linked(*first: calls.AnyReport) -> AsyncIterator[tuple[Link, Scripted]]:
    """A link to a scripted fork server; `link.run` is the test's to start."""
    folder = Path(tempfile.mkdtemp(prefix="ct-"))
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.fspath(folder / "f"))
            listening.listen()
            exits: list[Exited] = []
            with anyio.fail_after(5):
                async with connected(folder / "f", exits.append, Copies()) as link:
                    with listening.accept()[0] as stream:
                        scripted = Scripted(stream)
                        scripted.exits = exits
                        scripted.say(*first)
                        yield link, scripted
    finally:
        shutil.rmtree(folder)


async def test_nobody_there_is_a_lost_fork_server(tmp_path: Path) -> None:
    with pytest.raises(ForkServerLost, match="no fork server answers"):
        async with connected(tmp_path / "none", lambda _: None, Copies()):
            pass


def test_a_fork_server_that_is_stopped_holds_nobody_up() -> None:
    folder = Path(tempfile.mkdtemp(prefix="ct-"))
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(os.fspath(folder / "f"))
        stopped.listen(1)
        assert launch.is_running(folder / "f")
        while launch.is_running(folder / "f"):
            pass
    shutil.rmtree(folder)


async def test_the_link_has_started_when_it_knows_what_lives() -> None:
    async with linked(LIVING) as (link, _), anyio.create_task_group() as group:
        assert await group.start(link.run) == LIVING
        group.cancel_scope.cancel()


async def test_a_fork_server_that_dies_before_it_says_what_lives_is_lost() -> None:
    async with linked() as (link, scripted):
        scripted.stream.close()
        with pytest.raises(BaseExceptionGroup) as raised:
            async with anyio.create_task_group() as group:
                await group.start(link.run)
        assert raised.group_contains(ForkServerLost)


async def test_every_call_that_waits_hears_of_the_loss() -> None:
    lost = []

    async def call(link: Link) -> None:
        try:
            await link.release("apollo")
        except ForkServerLost:
            lost.append(1)

    async with linked(LIVING) as (link, scripted):
        with pytest.raises(BaseExceptionGroup) as raised:  # noqa: PT012 - the loss ends what goes on inside
            async with anyio.create_task_group() as group:
                await group.start(link.run)
                async with anyio.create_task_group() as calling:
                    for _ in range(3):
                        calling.start_soon(call, link)
                    await scripted.hear()
                    scripted.stream.close()
        assert raised.group_contains(ForkServerLost)
        assert link.lost.is_set()
        with pytest.raises(ForkServerLost):
            await link.release("apollo")
    assert len(lost) == 3


async def test_one_that_was_asked_to_quit_is_not_lost() -> None:
    async with linked(LIVING) as (link, scripted), anyio.create_task_group() as group:
        await group.start(link.run)
        group.start_soon(link.quit)
        assert isinstance(await scripted.hear(), calls.Quit)
        scripted.stream.close()


async def test_an_exit_right_behind_the_answer_to_its_fork_comes_after_it(tmp_path: Path) -> None:
    from keeping import specialist

    async with linked(LIVING) as (link, scripted), anyio.create_task_group() as group:
        await group.start(link.run)
        pids: list[int] = []

        async def fork() -> None:
            pids.append(await link.fork(specialist(tmp_path)))

        group.start_soon(fork)
        call = await scripted.hear()
        scripted.say(Answered(number=call.number, pid=7), EXIT)
        while not pids:
            await anyio.lowlevel.checkpoint()
        assert scripted.exits == [EXIT]
        group.cancel_scope.cancel()


async def test_answers_out_of_order_find_their_calls() -> None:
    async with linked(LIVING) as (link, scripted), anyio.create_task_group() as group:
        await group.start(link.run)
        refused: list[int] = []

        async def release(name: str) -> None:
            try:
                await link.release(name)
            except CannotStart as error:
                refused.append(error.number)

        group.start_soon(release, "apollo")
        first = await scripted.hear()
        group.start_soon(release, "athena")
        second = await scripted.hear()
        scripted.say(
            Answered(number=second.number), Answered(number=first.number, errno=98, error="address already in use")
        )
        while not refused:
            await anyio.lowlevel.checkpoint()
        assert refused == [98]
        group.cancel_scope.cancel()


async def test_sockets_that_cannot_be_had_are_missing_and_nothing_falls(tmp_path: Path) -> None:
    from keeping import specialist

    async with linked(LIVING) as (link, scripted), anyio.create_task_group() as group:
        await group.start(link.run)

        async def answer() -> None:
            call = await scripted.hear()
            with socket.socket() as one:
                said = calls.line(Answered(number=call.number, pid=7, listeners=2))
                socket.send_fds(scripted.stream, [said], [one.fileno()])

        group.start_soon(answer)
        config = specialist(tmp_path)
        assert await link.fork(config) == 7
        assert link.copies.of(config.name) == []
        group.cancel_scope.cancel()


async def test_a_signal_to_a_process_that_is_gone_says_so() -> None:
    async with linked(LIVING) as (link, scripted), anyio.create_task_group() as group:
        await group.start(link.run)
        said: list[bool] = []

        async def signal() -> None:
            said.append(await link.signal(7, 15))

        group.start_soon(signal)
        call = await scripted.hear()
        scripted.say(Answered(number=call.number, errno=3, error="no such process"))
        while not said:
            await anyio.lowlevel.checkpoint()
        assert said == [False]
        group.cancel_scope.cancel()
