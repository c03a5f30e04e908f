"""One connection: bytes in, requests found in them, and the rules by which it closes.

What a request is answered with is in `requests.py`. The rules, from the top:

- The first non-blank byte of a line decides: `{` is a JSON message, anything else is plain text. Plain lines that come
  without a pause are one message, so a paste is one question.
- End of input means "no more questions". A peer that is really gone is found by asking the kernel (`peer.py`).
- Debian's nc never half-closes, so a connection whose first message was piped in is closed after its last answer; a person
  at a keyboard keeps it. How long we wait depends on what the first message was.
- Before the end, our sending side is shut first and what still comes in is read and thrown away for a moment: closing with
  unread input makes the kernel discard what we sent last.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from enum import Enum
from typing import TYPE_CHECKING

from daemon import opening
from daemon.paste import Paste
from daemon.replies import harmless
from daemon.requests import Requests
from protocol import peer
from protocol.codec import BadLine, decode_request, encode, error_reply, is_typed
from protocol.errors import BadJson, BadRequest, Forbidden, LineTooLong, ProtocolError
from protocol.framing import LineBuffer
from protocol.messages import Cancel, Health, Info, Ping, Reply, RequestId

if TYPE_CHECKING:
    from daemon.server import Server

logger = logging.getLogger("chorus.daemon")

PIPED_WITHIN = 0.5  # a first message sooner than this after the accept was not typed by hand
SILENT_LIMIT = 60.0  # a connection that never says anything
IDLE_LIMIT = 600.0  # a person who went away
LAST_WORDS = 1.0  # how long input is thrown away after our side was shut
PEER_CHECK = 0.5  # how often the kernel is asked whether a half-closed peer is still there
WRITE_HIGH = WRITE_LOW = 0  # a reader is slow as soon as its socket is full: every unsent byte counts and has its time
FLOOD = 262_144  # unsent bytes over which a peer that only asks and never reads is not read from either


class Kind(Enum):
    """What the first message was; the value is how long a piped connection rests before it is closed, in seconds."""

    PLAIN = 1.0  # plain text, or a line that does not parse
    UNTYPED = 5.0  # JSON without a type
    TYPED = 30.0  # JSON with a type and no request_id
    PROGRAM = None  # JSON with a request_id: a program that will close by itself


class Conversation(asyncio.Protocol):
    """The state of one connection. Everything here runs on the event loop; requests run in the server's task group.

    `restricted` connections are beyond the limit: only ping, health, info and cancel are answered.
    """

    def __init__(self, server: Server, *, restricted: bool = False) -> None:
        self.server = server
        self.restricted = restricted
        self.spoken = False
        self.requests = Requests(self, server)
        self._lines = LineBuffer(server.limits.max_line_bytes)
        self._kind: Kind | None = None
        self._piped = False
        self._close_wanted = False
        self._ended = False  # the peer's side is shut
        self._closing = False  # our side is shut, or about to be
        self._paste = Paste(server.limits.max_line_bytes, self._end_paste)
        self._rest_timer: asyncio.TimerHandle | None = None
        self._peer_timer: asyncio.TimerHandle | None = None
        self._written = 0
        self._at_line_start = True
        self._slow = False
        self._paused = False

    # -- called by asyncio ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._accepted = self._loop.time()
        transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        self.server.opened(self)
        self.rest()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            self._take(data)
        except Exception:  # noqa: BLE001 - the fence: one conversation failing is a log line, never the server
            self._fail()

    def eof_received(self) -> bool:
        """End of input: no more questions. Returns whether our side stays open."""
        if self._closing:
            return False
        self._ended = True
        try:
            if last := self._lines.last_line():
                self._line(last)
            self._end_paste()
        except Exception:  # noqa: BLE001 - the same fence as in data_received
            self._fail()
        self._watch_peer()
        self.rest()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        self._paste.drop()
        for timer in (self._rest_timer, self._peer_timer):
            if timer is not None:
                timer.cancel()
        self.server.ledger.caught_up(self)
        self.requests.cancel_all("gone")
        self.server.closed(self)

    def pause_writing(self) -> None:
        self._slow = True
        self.server.ledger.slow(self)

    def resume_writing(self) -> None:
        self._slow = False
        self.server.ledger.caught_up(self)
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
            self.data_received(b"")  # lines that came with those that were too many

    # -- for the requests -----------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Sends bytes; never waits. What the socket does not take is held in the transport's buffer."""
        if self._closing or self._transport.is_closing() or not data:
            return
        self._transport.write(data)
        self._written += len(data)
        self._at_line_start = data.endswith(b"\n")
        if self._slow:
            self.server.ledger.wrote(len(data))

    def send(self, reply: Reply) -> None:
        """Sends one JSON line."""
        self.end_line()
        self.write(encode(reply))

    def end_line(self) -> None:
        """What is written next begins a line, also in the middle of an answer in plain text."""
        if not self._at_line_start:
            self.write(b"\n")

    def refuse(self, error: ProtocolError, request_id: str | int | None = None, *, plain: bool = False) -> None:
        """Answers with an error at once, in the caller's dialect."""
        if plain:
            self.end_line()
            self.write(f"error: {harmless(error.sentence)}\n".encode(errors="replace"))
        else:
            self.send(error_reply(error, request_id, self.server.specialist.config.ai_id))
        self._hold_flood()

    def rest(self) -> None:
        """Something ended or arrived: works out anew how long this connection may stay as it is."""
        if self._closing:
            return
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None
        if self.requests.under_way or self._paste or self._paused:
            return
        patience = self._patience()
        if patience == 0:
            self.finish()
        elif patience is not None:
            self._rest_timer = self._loop.call_later(patience, self._tire)

    def want_close(self) -> None:
        """The client asked for the connection to be closed after the answers that are under way."""
        self._close_wanted = True

    # -- for the server and the ledger ------------------------------------------------------------------------------------

    def held(self) -> int:
        return self.unsent() + self.requests.growing

    def unsent(self) -> int:
        return self._transport.get_write_buffer_size()

    def written(self) -> int:
        return self._written

    def cut_off(self, reason: str) -> None:
        logger.warning("disconnected a client that does not read: %s", reason)
        self.abort()

    def abort(self) -> None:
        """Drops the connection and everything unsent."""
        self._closing = True
        self.requests.cancel_all("gone")
        self._transport.abort()

    def finish(self) -> None:
        """Closes: our side first, then what still comes in is thrown away for a moment."""
        if self._closing:
            return
        self._closing = True
        if self._ended or (self.server.stopping and self._kind is Kind.PROGRAM):
            # Nothing more can come in; and a program that keeps its connection open between questions would not notice.
            self._transport.close()  # flushes
            return
        if self._paused:
            self._transport.resume_reading()
        try:
            self._transport.write_eof()
        except OSError:  # ENOTCONN: it was reset, and asyncio has not seen it yet
            self.abort()
            return
        self._rest_timer = self._loop.call_later(LAST_WORDS, self._transport.close)

    # -- bytes into requests ------------------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        if not self.spoken and not self._lines and opening.is_tls(data):
            self._close_with(opening.TLS_REFUSAL)
            return
        self._lines.feed(data)
        while not self._closing and not self._paused:
            try:
                line = self._lines.next_line()
            except LineTooLong as error:
                self._too_long(error)
                continue
            if line is None:
                break
            self._line(line)
        if self._paste and self._lines:
            self._paste.wait()  # the next line is on its way: this is no pause
        self.rest()

    def _too_long(self, error: LineTooLong) -> None:
        if not self.spoken:
            if opening.begins_http(error.start):
                self._refuse_http()
                return
            if not self._admit(error.start):
                return
        self._first(Kind.PLAIN)
        self._end_paste()
        self.requests.refuse_in_order(error, None, plain=not _is_json(error.start))

    def _line(self, line: bytes) -> None:
        if not line.strip():
            if self._paste:
                self._paste.add(line)
            return
        if not self.spoken:
            if opening.is_http(line):
                self._refuse_http()
                return
            if not self._admit(line):
                return

        if _is_json(line):
            if not self._paste:
                self._json(line)
                return
            try:  # inside a paste only what parses is a message of its own; source code is full of lines with {
                decode_request(line)
            except BadLine as bad:
                if isinstance(bad.reason, BadJson):
                    self._paste.add(line)
                    return
            self._end_paste()
            self._json(line)
        else:
            self._paste.add(line)

    def _refuse_http(self) -> None:
        config = self.server.specialist.config
        self._close_with(opening.http_refusal(config.name, config.port))

    def _admit(self, line: bytes) -> bool:
        """Before the first request: may this user speak to us at all?"""
        owner = self._peer()
        if isinstance(owner, peer.Gone):
            # Asked and left without waiting: nobody to answer, and nobody left whose user could be checked.
            self.abort()
            return False
        if isinstance(owner, peer.Owner) and not self.server.may_speak(owner.uid):
            error = Forbidden(
                f"user {owner.uid} of this machine may not talk to this team: its owner can add allow_users"
            )
            self.refuse(error, plain=not _is_json(line))
            self.finish()
            return False
        self.spoken = True
        self.server.spoke(self)
        return True

    def _first(self, kind: Kind, came: float | None = None) -> None:
        if self._kind is None:
            self._kind = kind
            self._piped = (came or self._loop.time()) - self._accepted <= PIPED_WITHIN

    def _json(self, line: bytes) -> None:
        try:
            request = decode_request(line)
        except BadLine as bad:
            unparsed = isinstance(bad.reason, BadJson)
            self._first(Kind.PLAIN if unparsed else _kind_of(line, bad.request_id))
            self._close_wanted = self._close_wanted or bad.close
            self.requests.refuse_in_order(bad.reason, bad.request_id)
            self._hold_flood()
            return

        if self._kind is None:
            self._first(_kind_of(line, request.request_id))
        if request.close:
            self._close_wanted = True
        specialist = self.server.specialist
        match request:
            case Ping():
                self.send(specialist.ping(request))
            case Health():
                specialist.buffered_bytes = self.server.ledger.total()
                self.send(specialist.health(request.request_id))
            case Info():
                self.send(specialist.info(request.request_id))
            case Cancel():
                self.requests.cancel(request)
            case _ if self.restricted:
                self.refuse(self.server.full(), request.request_id)
                self._close_wanted = True
            case _:
                self.requests.start(request)
        self._hold_flood()

    def _hold_flood(self) -> None:
        """A peer that asks and asks and never reads is not read from until it does."""
        if not self._paused and not self._ended and self.unsent() > FLOOD:
            self._paused = True
            self._transport.pause_reading()

    # -- plain text -----------------------------------------------------------------------------------------------------

    def _end_paste(self) -> None:
        began = self._paste.began
        text = self._paste.take()
        if not text:
            return
        self._first(Kind.PLAIN, began)
        if self.restricted:
            self.refuse(self.server.full(), plain=True)
            self._close_wanted = True
        else:
            self.requests.start_plain(text)
        self.rest()

    # -- the end ----------------------------------------------------------------------------------------------------------

    def _patience(self) -> float | None:
        """How long to rest before closing, in seconds; 0 is now, None is for ever."""
        if self._ended or self._close_wanted or self.server.stopping:
            return 0
        if self._kind is None:
            return max(0.001, self._accepted + SILENT_LIMIT - self._loop.time())
        if self._piped:
            rest: float | None = self._kind.value
            return rest
        return None if self._kind is Kind.PROGRAM else IDLE_LIMIT

    def _tire(self) -> None:
        if rest := self._lines.last_line():
            error = BadRequest("a message ends with a newline: what came without one was not answered")
            self.refuse(error, plain=not _is_json(rest))
        elif self._kind is Kind.PLAIN and not self._piped:
            self.write(b"[closed after 10 minutes without a question]\n")
        self.finish()

    def _peer(self) -> peer.Owner | peer.Gone | peer.Untold:
        sock: socket.socket = self._transport.get_extra_info("socket")
        name = self._transport.get_extra_info("peername")
        if name is None:  # reset before it was accepted
            return peer.Gone()
        return peer.ask(sock.family, name[:2], sock.getsockname()[:2])

    def _fail(self) -> None:
        """Ends a conversation in which something went wrong here."""
        error = self.server.failure("a conversation failed")
        self.refuse(error, plain=self._kind is Kind.PLAIN)
        self.requests.cancel_all("gone")
        self.finish()

    def _close_with(self, last_words: bytes) -> None:
        self.write(last_words)
        self.finish()

    def _watch_peer(self) -> None:
        """While an answer is under way for a peer that shut its side: is it still there?"""
        if self._closing or not self.requests.under_way:
            return
        owner = self._peer()
        if isinstance(owner, peer.Gone):
            self.abort()
        elif isinstance(owner, peer.Owner):
            self._peer_timer = self._loop.call_later(PEER_CHECK, self._watch_peer)


def _kind_of(line: bytes, request_id: RequestId | None) -> Kind:
    """What kind of first message a JSON object is, also one that was refused."""
    if request_id is not None:
        return Kind.PROGRAM
    return Kind.TYPED if is_typed(line) else Kind.UNTYPED


def _is_json(line: bytes) -> bool:
    """The first non-blank byte decides."""
    return line.lstrip()[:1] == b"{"
