"""What was said, by session, on disk: a restart forgets nothing. One SQLite file for each specialist.

Every call runs in a worker thread, one at a time, and opens the file on first use: never before a fork. A predecessor that
is still finishing its conversations may use the same file (WAL, busy_timeout).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from msgspec import Struct

from protocol.messages import StoredTurn, Turn

T = TypeVar("T")

BUSY_TIMEOUT = 5.0
WAL_AGAIN_AFTER = 0.01  # seconds between two tries to switch to WAL
SWEEP_EVERY = 3600.0  # how often turns past their retention are looked for, in seconds

SCHEMA = """
create table if not exists turn (
    id integer primary key autoincrement,
    session_id text not null,
    role text not null,
    content text not null,
    at real not null,
    model text,
    done_reason text
);
create index if not exists turn_session on turn (session_id, id);
create index if not exists turn_at on turn (at);
create table if not exists cut (session_id text primary key, first_turn integer not null);
"""


class Said(Struct, frozen=True):
    """A text and the Unix time when it was said."""

    text: str
    at: float


class Sessions:
    """The turns of one specialist. `retention_days` is how long they are kept; what is deleted leaves no byte behind."""

    def __init__(self, path: Path, retention_days: float) -> None:
        self.path = path
        self.retention = retention_days * 86400
        self._one_at_a_time = anyio.CapacityLimiter(1)
        self._connection: sqlite3.Connection | None = None
        self._swept = 0.0

    async def turns(self, session_id: str) -> list[Turn]:
        """What belongs in the prompt of this session, oldest first: everything since the last cut."""
        return await self._call(self._turns, session_id)

    async def cut(self, session_id: str, kept: int) -> None:
        """Leaves all but the newest `kept` turns out of this session's prompts from now on; they stay in the history."""
        await self._call(self._cut, session_id, kept)

    async def add(self, session_id: str, question: Said, answer: Said, model: str, done_reason: str) -> None:
        """Stores one question and its answer."""
        await self._call(self._add, session_id, question, answer, model, done_reason)

    async def history(self, session_id: str | None, limit: int, before: float | None) -> tuple[list[StoredTurn], int]:
        """The newest `limit` turns older than `before`, oldest first, and how many turns there are in all."""
        return await self._call(self._history, session_id, limit, before)

    async def forget(self, session_id: str | None) -> int:
        """Deletes a session (all of them for None) and returns how many turns it had."""
        return await self._call(self._forget, session_id)

    async def close(self) -> None:
        """Closes the file. The object may be used again."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._close, limiter=self._one_at_a_time)

    # -- in the worker thread -------------------------------------------------------------------------------------------

    async def _call(self, work: Callable[..., T], *args: object) -> T:
        def run() -> T:
            return work(self._open(), *args)

        return await anyio.to_thread.run_sync(run, limiter=self._one_at_a_time)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.touch(mode=0o600)
            self._connection = _connected(self.path)
        now = time.time()
        if now - self._swept > SWEEP_EVERY:
            self._swept = now
            self._delete(self._connection, "at < ?", now - self.retention)
        return self._connection

    def _turns(self, connection: sqlite3.Connection, session_id: str) -> list[Turn]:
        rows = connection.execute(
            "select role, content from turn where session_id = ?"
            " and id >= coalesce((select first_turn from cut where session_id = ?), 0) order by id",
            (session_id, session_id),
        )
        return [Turn(role, content) for role, content in rows]

    def _cut(self, connection: sqlite3.Connection, session_id: str, kept: int) -> None:
        connection.execute(
            "insert or replace into cut (session_id, first_turn) select ?, coalesce("
            " (select min(id) from (select id from turn where session_id = ? order by id desc limit ?)),"
            " (select max(id) + 1 from turn where session_id = ?), 0)",
            (session_id, session_id, kept, session_id),
        )

    def _add(
        self,
        connection: sqlite3.Connection,
        session_id: str,
        question: Said,
        answer: Said,
        model: str,
        done_reason: str,
    ) -> None:
        rows: list[tuple[Any, ...]] = [
            (session_id, "user", question.text, question.at, None, None),
            (session_id, "assistant", answer.text, answer.at, model, done_reason),
        ]
        connection.execute("begin immediate")
        try:
            connection.executemany(
                "insert into turn (session_id, role, content, at, model, done_reason) values (?, ?, ?, ?, ?, ?)",
                rows,
            )
            connection.execute("commit")
        except sqlite3.Error:
            connection.execute("rollback")
            raise

    def _history(
        self, connection: sqlite3.Connection, session_id: str | None, limit: int, before: float | None
    ) -> tuple[list[StoredTurn], int]:
        of_session = "(? is null or session_id = ?)"
        rows = connection.execute(
            # In the order by which `before` counts: answers do not end in the order in which they were asked for.
            f"select session_id, role, content, at, model from turn where {of_session} and (? is null or at < ?)"  # noqa: S608
            " order by at desc, id desc limit ?",
            (session_id, session_id, before, before, limit),
        ).fetchall()
        [total] = connection.execute(
            f"select count(*) from turn where {of_session}",  # noqa: S608 - two constants
            (session_id, session_id),
        ).fetchone()
        return [StoredTurn(*row) for row in reversed(rows)], total

    def _forget(self, connection: sqlite3.Connection, session_id: str | None) -> int:
        if session_id is None:
            return self._delete(connection, "true")
        return self._delete(connection, "session_id = ?", session_id)

    def _delete(self, connection: sqlite3.Connection, where: str, *args: object) -> int:
        """Deletes turns for real: pages are overwritten (secure_delete) and the write-ahead log is emptied."""
        removed = connection.execute(f"delete from turn where {where}", args).rowcount  # noqa: S608 - ours
        if removed:
            connection.execute("delete from cut where session_id not in (select session_id from turn)")
            connection.execute("pragma wal_checkpoint(truncate)")
        return removed

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _connected(path: Path) -> sqlite3.Connection:
    # Several worker threads use it, never two at once: the limiter has one place.
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        _switch_to_wal(connection)
        connection.execute("pragma synchronous = normal")
        connection.execute("pragma secure_delete = on")
        connection.executescript(SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """SQLite does not wait here: of two processes that make the file at the same moment, one is told that it is locked."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("pragma journal_mode = wal")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(WAL_AGAIN_AFTER)
        else:
            return
