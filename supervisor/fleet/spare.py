"""A child of the fork server that was forked ahead, and waits to be told who it is.

Between a death and the next answer most of the time goes into the fork itself, and into the pages that a new process writes
for the first time. A spare has that behind it when it is needed: it has run through a specialist's start. It ends with the fork
server; but what it was told counts, whether or not the fork server lives to report it, as with any fork.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct
from setproctitle import setproctitle

from protocol.framing import LineBuffer
from protocol.settings import ChildConfig
from supervisor.fleet import pidfiles
from supervisor.fleet.calls import MOST_SOCKETS, SPARE, Process, line

AFTER = 0.1  # seconds without anything to do until one is forked: first all that is wanted at once
AGAIN_AFTER = 5.0  # where that was refused, or the last one ended without having been told
TOLD_WITHIN = 1.0  # seconds to take what it is told; it has nothing else to do
READY = b"."


class Told(Struct, frozen=True):
    """Who it is from now on. `born` is what the fork server knows of it."""

    config: ChildConfig
    born: Process


_decode = msgspec.json.Decoder(Told).decode


class Spare:
    """The fork server's side: the place of one spare, which may be empty. Written by the fork server."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._link: socket.socket | None = None
        self._is_ready = False
        self._after = AFTER

    @property
    def patience(self) -> float | None:
        """Seconds without anything to do until the place is to be filled; None while it is."""
        return self._after if self._pid is None else None

    def fork(self, split: Callable[[Callable[[], None]], int], live: Callable[[socket.socket], None]) -> None:
        """Fills the place. `split` forks and has the child do something, `live` is what a spare does with its end of the link.

        Where the system refuses, that is said when a specialist is wanted.
        """
        self._after = AGAIN_AFTER
        try:
            self._link, theirs = socket.socketpair()
        except OSError:
            return
        with theirs:
            try:
                self._pid = split(lambda: live(theirs))
            except OSError:
                self.close()

    def tell(
        self, config: ChildConfig, born: Callable[[int], Process], listeners: Sequence[socket.socket]
    ) -> int | None:
        """Has the spare become a specialist and returns its pid; None where there is none that can."""
        if self._pid is None or self._link is None or not self._has_got_ready(self._link):
            return None
        pid, said = self._pid, line(Told(config, born(self._pid)))
        self._pid, self._is_ready, self._after = None, False, AFTER
        try:
            if pidfiles.is_stopped(pid):
                raise TimeoutError  # it could be told, and would not hear
            self._link.settimeout(TOLD_WITHIN)
            sent = socket.send_fds(self._link, [said], [one.fileno() for one in listeners])
            self._link.sendall(said[sent:])
        except OSError:
            os.kill(pid, signal.SIGKILL)  # of no use any more; it was not reaped by now, so it is nobody else
            return None
        finally:
            self.close()
        return pid

    def ended(self, pid: int) -> None:
        """A child that was no specialist has ended."""
        if pid == self._pid:
            self._pid, self._is_ready, self._after = None, False, AGAIN_AFTER
            self.close()

    def kill(self) -> None:
        """Ends it by force, and returns when it is gone."""
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self.ended(self._pid)

    def close(self) -> None:
        """Lets go of the link; in a child of the fork server nothing else is its own."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _has_got_ready(self, link: socket.socket) -> bool:
        """Whether it has run through its start: before that, another fork is faster."""
        if not self._is_ready:
            try:
                self._is_ready = link.recv(1, socket.MSG_DONTWAIT) == READY
            except OSError:
                pass  # not yet
        return self._is_ready


def wait(link: socket.socket) -> tuple[Told, list[socket.socket]]:
    """In the spare itself, when it is ready: who it is to be, and its listeners.

    Ends the process where nobody is there any more to say it.
    """
    lines, found = LineBuffer(None), list[int]()
    try:
        link.sendall(READY)
        setproctitle(SPARE)
        while (said := lines.next_line()) is None:
            data, descriptors, _, _ = socket.recv_fds(link, 65536, MOST_SOCKETS)
            if not data:
                os._exit(0)
            lines.feed(data)
            found += descriptors
    except OSError:
        os._exit(0)
    link.close()
    listeners = [socket.socket(fileno=one) for one in found]
    for one in listeners:
        one.set_inheritable(False)  # what recvmsg(2) opens is
    return _decode(said), listeners
