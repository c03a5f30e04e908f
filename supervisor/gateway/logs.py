"""What a specialist wrote down: the last lines of its log, and what is written from then on.

The files are read where they are, so this works whoever is down, and goes on across restarts and rotations.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import anyio
import anyio.to_thread
from aiohttp import web
from msgspec import Meta, Struct

from protocol import names
from protocol.errors import NotFound, ProtocolError
from supervisor import records
from supervisor.gateway.frames import frame, json_line
from supervisor.gateway.operation import RESUME_GRACE, Answer, Call
from supervisor.gateway.problem import code_of
from supervisor.gateway.resume import serve, serve_from
from supervisor.gateway.stream import Stream
from supervisor.gateway.streams import Work
from supervisor.gateway.vocabulary import Event, Vocabulary
from supervisor.records import OUTPUT, Record, Told
from supervisor.tail import Tail

KIND = "logs"
LOOK_EVERY = 0.2  # seconds between two looks at the files
MOST_LINES = 10_000


class LogQuery(Struct, frozen=True):
    """The last `lines` records. With `follow`, as with `Accept: text/event-stream`, they are events, and go on."""

    lines: Annotated[int, Meta(ge=0, le=MOST_LINES)] = 100
    follow: bool = False
    last_event_id: str | None = None


class Log(Struct, frozen=True):
    """Records, oldest first."""

    name: str
    specialist_id: str
    lines: list[Told]


class LogReset(Struct, frozen=True, tag_field="type", tag="stream_reset"):
    """What follows does not go on where this reader was: `lost` records are missing, or it begins with the last ones again."""

    reason: str
    lost: int | None


class LogError(Struct, frozen=True, tag_field="type", tag="error"):
    """Nothing follows."""

    error: str
    code: str


EVENTS = {"log": (Told,), "stream_reset": (LogReset,), "error": (LogError,)}


async def read(call: Call[None]) -> Answer:
    """The last records as JSON, as text, or as events that go on: as `Accept` says."""
    query: LogQuery = call.query
    name = call.house.team.find(call.part()).name
    folder = call.house.config.log_dir
    if folder is None:
        raise NotFound(f"{name} does not write to a file here: chorus logs {name} shows what it writes")
    paths = [Path(folder) / f"{name}{end}" for end in (".log", ".out")]
    accepted = call.request.headers.get("Accept", "")
    if query.follow or "text/event-stream" in accepted:
        return await _follow(call, query, name, paths)
    tails = [Tail(path) for path in paths]
    found = await anyio.to_thread.run_sync(_existing, name, tails, query.lines)
    _close(tails)
    if "text/plain" in accepted:
        text = "".join(f"{_line(record)}\n" for record in found)
        return web.Response(text=text, content_type="text/plain", charset="utf-8")
    return Log(name, names.specialist_id(name), [records.told(record) for record in found])


async def _follow(call: Call[None], query: LogQuery, name: str, paths: list[Path]) -> Answer:
    opening = b""
    try:
        if (resumed := await serve_from(call, query.last_event_id)) is not None:
            return resumed
    except NotFound:
        opening = frame("stream_reset", json_line(LogReset("what this reader had read is not known any more", None)))
    stream = await call.begun(KIND, _following(name, paths, query.lines), is_kept=False, is_endless=True)
    return await serve(call, stream, grace=RESUME_GRACE, opening=opening)


def _following(name: str, paths: list[Path], lines: int) -> Work:
    async def work(stream: Stream) -> None:
        tails = [Tail(path) for path in paths]
        try:
            _append(stream, await anyio.to_thread.run_sync(_existing, name, tails, lines))
            while True:
                await anyio.sleep(LOOK_EVERY)
                _append(stream, await anyio.to_thread.run_sync(_news, name, tails))
        finally:
            _close(tails)

    return work


def _append(stream: Stream, found: Iterable[Record]) -> None:
    for record in found:
        stream.append("log", json_line(records.told(record)))


def _existing(name: str, tails: list[Tail], lines: int) -> list[Record]:
    found = records.merged([records.recent(name, tail, lines, 0.0, keep_open=True) for tail in tails])
    return found[max(0, len(found) - lines) :]


def _news(name: str, tails: list[Tail]) -> list[Record]:
    news = [
        record
        for tail in tails
        for lines, changed_at in tail.news()
        for record in records.parsed(name, tail.path, lines, changed_at)
    ]
    return sorted(news, key=lambda one: one.at)


def _close(tails: list[Tail]) -> None:
    for tail in tails:
        tail.close()


def _line(record: Record) -> str:
    level = "" if record.level == OUTPUT else f" {record.level}"
    return f"{records.stamped(record.at)}{level} {record.message}"


# -- the vocabulary -----------------------------------------------------------------------------------------------


def _failed(error: ProtocolError, _: None) -> list[Event]:
    return [("error", json_line(LogError(error.sentence, code_of(error))))]


def _behind(lost: int, _: None) -> Event:
    return "stream_reset", json_line(LogReset("this reader fell behind", lost))


VOCABULARY = Vocabulary(name=KIND, fold=lambda _: None, failed=_failed, behind=_behind)
