"""Listen, accept, drain: the process's connections and what all of them share.

A conversation that fails is a log line. Running out of descriptors pauses accepting; it never ends it. The listening sockets
may be inherited: their backlog is whoever's who bound them, so listen() is never called here (asyncio would cut it to 100).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import socket
from collections.abc import Callable, Coroutine
from typing import Any, TypeVarTuple

import anyio
import anyio.abc
import anyio.lowlevel

from daemon.conversation import Conversation
from daemon.specialist import Specialist
from daemon.unsent import Ledger
from protocol import peer
from protocol.errors import Busy, Internal

logger = logging.getLogger("chorus.daemon")
Args = TypeVarTuple("Args")

# accept(2) fails when descriptors or memory are used up, and passes on errors of the network: either way, a moment later.
RETRY_ACCEPT_AFTER = 0.1
ACCEPTS_AT_A_TIME = 64  # so that a flood of connections does not starve the ones that are there
# The kernel says that there is room only when a third of its buffer is free. Of the 4 MB to which it grows by itself, a
# reader at 40 kB/s does not take that much within write_timeout, and would be cut off while it reads.
SEND_BUFFER = 131_072
KEPT_PLACES = 4  # beyond the limit, for whoever only asks how we are: the supervisor must always get in
FIRST_WORDS = 0.25  # seconds from the accept that a new connection has for its first question when we are about to end
ROOT = 0


class Server:
    """One specialist's connections. `stopping` means that no new conversation begins and resting ones are closed."""

    def __init__(self, specialist: Specialist) -> None:
        self.specialist = specialist
        self.limits = specialist.config.limits
        self.ledger = Ledger(self.limits.write_timeout, self.limits.max_buffered_bytes)
        self.stopping = False
        self._users = {os.getuid(), ROOT, *specialist.config.allowed_uids}
        self._conversations: set[Conversation] = set()
        self._unspoken: dict[Conversation, float] = {}  # since when, the longest idle one first
        self._heard = asyncio.Event()  # one of them spoke, or left
        self._arriving = 0  # accepted, and not yet a conversation
        self._emptied = asyncio.Event()
        self._grace = anyio.CancelScope()
        self._is_patient = False
        self._group: anyio.abc.TaskGroup | None = None

    async def serve(self, listeners: list[socket.socket], stop: anyio.Event, grace: float) -> None:
        """Answers until `stop`, then lets what is under way go on for `grace` seconds. Closes the listeners.

        What is not done by then ends with `draining` and with what had arrived.
        """
        peer.prepare()
        loop = asyncio.get_running_loop()
        try:
            async with anyio.create_task_group() as self._group:
                for listener in listeners:
                    listener.setblocking(False)
                    loop.add_reader(listener.fileno(), self._accept, listener)
                await stop.wait()
                # The listeners first: whoever connects from now on is our successor's.
                for listener in listeners:
                    loop.remove_reader(listener.fileno())
                    listener.close()
                await self._drain(grace)
        finally:
            peer.close()

    def be_patient(self) -> None:
        """What is under way when the server stops, now or later, goes on until `end_grace`."""
        self._is_patient = True
        self._grace.deadline = math.inf

    def end_grace(self) -> None:
        """What is still under way when the server stops, now or later, ends at once."""
        self._grace.cancel()

    # -- for the conversations ------------------------------------------------------------------------------------------

    def start(self, work: Callable[[*Args], Coroutine[Any, Any, None]], *args: *Args) -> None:
        """Runs a request in the server's own task group, which outlives every conversation."""
        assert self._group is not None
        self._group.start_soon(work, *args)

    def opened(self, conversation: Conversation) -> None:
        self._arriving -= 1
        self._conversations.add(conversation)
        self._unspoken[conversation] = anyio.current_time()
        self.specialist.clients = len(self._conversations)

    def spoke(self, conversation: Conversation) -> None:
        self._unspoken.pop(conversation, None)
        self._heard.set()

    def closed(self, conversation: Conversation) -> None:
        self._conversations.discard(conversation)
        self._unspoken.pop(conversation, None)
        self._heard.set()
        self.specialist.clients = len(self._conversations)
        if not self._conversations:
            self._emptied.set()

    def may_speak(self, uid: int) -> bool:
        return uid in self._users

    def full(self) -> Busy:
        sentence = f"{self.limits.connections} connections are open to {self.specialist.config.name}: try again"
        return Busy(sentence, retry_after=1.0)

    def failure(self, what: str, partial: str = "") -> Internal:
        """Logs the exception under way; returns what its client is told, with the trace id under which it stands."""
        trace = secrets.token_hex(6)
        logger.exception("%s (trace %s)", what, trace)  # noqa: LOG004 - called where it was caught
        name = self.specialist.config.name
        return Internal(f"something went wrong here; the log of {name} has it as {trace}", partial=partial)

    # -- accepting --------------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_A_TIME):
            try:
                connection, _address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause_accepting(listener, error)
                return
            self._welcome(connection)

    def _pause_accepting(self, listener: socket.socket, error: OSError) -> None:
        logger.error("cannot accept a connection: %s; trying again", error.strerror)
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener.fileno())

        def resume() -> None:
            if not self.stopping and listener.fileno() >= 0:
                loop.add_reader(listener.fileno(), self._accept, listener)

        loop.call_later(RETRY_ACCEPT_AFTER, resume)

    def _welcome(self, connection: socket.socket) -> None:
        restricted = False
        over = len(self._conversations) + self._arriving - self.limits.connections
        if over >= 0:
            if self._unspoken:
                eldest = next(iter(self._unspoken))
                eldest.abort()
                self.closed(eldest)  # now, not when asyncio says so: whoever is accepted next must not count it again
            elif over < KEPT_PLACES:
                restricted = True
            else:
                connection.close()
                return
        self._arriving += 1
        self.start(self._adopt, connection, restricted)

    async def _adopt(self, connection: socket.socket, restricted: bool) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            await loop.connect_accepted_socket(lambda: Conversation(self, restricted=restricted), connection)
        except OSError as error:
            logger.warning("a connection was lost while it was accepted: %s", error)
            connection.close()
            self._arriving -= 1

    # -- draining ---------------------------------------------------------------------------------------------------------

    async def _drain(self, grace: float) -> None:
        while self._arriving:
            await anyio.lowlevel.checkpoint()
        await self._first_words()
        # Whoever asked before now is answered, not cut off: two turns of the loop read and take what has reached us.
        for _ in range(2):
            await anyio.lowlevel.checkpoint()
        self.specialist.draining = True
        self.stopping = True
        for conversation in list(self._conversations):
            conversation.rest()
        if not self._is_patient:
            self._grace.deadline = anyio.current_time() + grace
        with self._grace:
            await self._empty()
        for conversation in list(self._conversations):
            conversation.requests.cancel_all("draining")
        with anyio.move_on_after(1.0):
            await self._empty()
        for conversation in list(self._conversations):
            conversation.abort()

    async def _first_words(self) -> None:
        """Whoever was accepted a moment ago has its question on the way, and would ask nobody if we closed."""
        while self._unspoken and (youngest := max(self._unspoken.values())) > anyio.current_time() - FIRST_WORDS:
            self._heard.clear()
            with anyio.CancelScope(deadline=youngest + FIRST_WORDS):
                await self._heard.wait()

    async def _empty(self) -> None:
        while self._conversations:
            self._emptied.clear()
            await self._emptied.wait()
