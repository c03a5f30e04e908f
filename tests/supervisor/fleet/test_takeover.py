from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from supervisor.fleet import pidfiles, takeover
from supervisor.fleet.calls import Process
from supervisor.fleet.copies import Copies

# Listens on a port that it says, and has a connection and a socket of another kind open as well.
LISTENER = """
import socket, sys
listening = socket.create_server(("127.0.0.1", 0))
port = listening.getsockname()[1]
own = socket.create_connection(("127.0.0.1", port)); accepted = listening.accept()
other = socket.create_server(("127.0.0.1", 0)); pair = socket.socketpair()
print(port, flush=True)
sys.stdin.read()
"""


@contextmanager
def listener() -> Iterator[Process]:
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        ticks, places = pidfiles.ticks_of(child.pid), [("127.0.0.1", port)]
        yield msgspec.structs.replace(pidfiles.this_process(), name="apollo", pid=child.pid, ticks=ticks, places=places)
        child.kill()


def test_the_listening_socket_of_its_port_is_taken_and_nothing_else() -> None:
    with listener() as process:
        [taken] = takeover.listeners_of(process)
        with taken:
            [place] = process.places
            assert taken.getsockname() == place
            os.kill(process.pid, 9)
            with socket.create_connection(place, 5):
                taken.accept()[0].close()


def test_nothing_is_taken_of_a_stranger_with_the_same_number() -> None:
    with listener() as process:
        assert process.ticks is not None
        stranger = msgspec.structs.replace(process, ticks=process.ticks - 1)
        with pytest.raises(ProcessLookupError):
            takeover.listeners_of(stranger)


async def test_a_program_without_a_file_is_known_by_what_it_was_given(tmp_path: Path) -> None:
    given = "LISTEN_PID=$$ CHORUS_NAME=apollo CHORUS_PORT=4711 exec sleep 600"
    other = "LISTEN_PID=1 CHORUS_NAME=athena CHORUS_PORT=4712 exec sleep 600"
    with subprocess.Popen(["sh", "-c", given]) as program, subprocess.Popen(["sh", "-c", other]) as another:
        try:
            with anyio.fail_after(5):
                while not (found := await takeover.left_behind(tmp_path, set())):
                    pass
        finally:
            program.kill()
            another.kill()
    assert [(one.name, one.pid) for one in found] == [("apollo", program.pid)]
    assert found[0].places == [("127.0.0.1", 4711), ("::1", 4711)]


def test_copies_that_are_replaced_are_closed_and_the_same_ones_are_not() -> None:
    copies = Copies()
    first, second = socket.socket(), socket.socket()
    copies.put("apollo", [first])
    copies.put("apollo", [first])
    assert first.fileno() != -1
    copies.put("apollo", [second])
    assert first.fileno() == -1
    copies.drop("apollo")
    assert second.fileno() == -1
    assert copies.of("apollo") == []
