"""The gateway measured: what it adds before the first token, what an event and a waiting stream cost, and what crowds do to it.

The specialists are look-alikes (speaker.py) and the clients light (readers.py): each token is the time at which it was written,
so that whoever reads it knows how long it was on its way. The relay has a core of its own, everything else has the other one.
The same is asked of starlette, sse-starlette and uvicorn in the same run, in turns.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from benchmarks.instruments import PYTHON, connection, cpu, load, percentile, pin, rss, wait_until
from benchmarks.limits import first_piece, model_server
from benchmarks.peers import install
from benchmarks.readers import Read, Reading
from benchmarks.relays import CORE, VERSIONS, Chorus, Relay, Starlette
from benchmarks.team import Bench
from protocol import names

HERE = Path(__file__).parent
OTHER_CORE = CORE + 1
PATH = "/api/chat/apollo/stream"
RATE = 20  # tokens a second of one stream
RAMP = 3.0  # seconds in which a crowd arrives
BURST = 2000  # tokens of an answer that comes as fast as it is taken; all of it fits into a ring
WARM = 100  # questions that are asked first, and not counted
IDLE = 500  # streams that wait
ALONE = 500  # streams through a relay alone
END_TO_END = 300
NEVER = 1000  # clients that never read
BESIDE = 50  # clients that do, beside them
NEVER_RATE = 2  # tokens a second for those
LARGE = 3000  # characters of such a token: an event says it three times
FULL_AFTER = 14.0  # seconds until everything between them and the gateway is full
CUT_OFF_AFTER = 12.0  # seconds from then on: the write deadline is ten
PATIENCE = 30.0  # seconds that an answer may take longer than it should
SETTLED_AFTER = 1.0


class Effort(Struct, frozen=True):
    """How much is measured."""

    questions: int = 1000
    answers: int = 30  # of BURST tokens each
    seconds: float = 12.0  # of an answer to one of a crowd


QUICK = Effort(questions=300, answers=6, seconds=6.0)


class Crowd(Struct, kw_only=True):
    """Many streams at once. Delays in seconds, from the write of whoever made the token to its reader."""

    tokens: int
    lost: int
    p50: float
    p99: float
    slowest: float
    use: float  # of the relay, as a share of a core
    cpu: float  # of the relay, seconds for each event


class Figures(Struct, kw_only=True):
    """What was measured of one relay. Seconds, MiB."""

    title: str
    firsts: list[float] = field(default_factory=list)  # until the first token
    one: float = 0.0  # events a second, one stream
    one_cpu: float = 0.0  # processor time of one event
    fifty: float = 0.0
    fifty_cpu: float = 0.0
    idle: float = 0.0  # memory with nobody there
    waiting: float = 0.0  # with IDLE streams that wait
    after: float = 0.0  # in the end
    crowd: Crowd | None = None


class Never(Struct, kw_only=True):
    """Readers beside a thousand that never read, and before these came. Memory in MiB."""

    before: Crowd
    beside: Crowd
    idle: float
    highest: float
    cut: int


class Report(Struct, kw_only=True):
    """Everything of one run. `absent` is why the peer is missing where it is."""

    direct: list[float] = field(default_factory=list)
    relays: list[Figures] = field(default_factory=list)
    whole: Crowd | None = None
    never: Never | None = None
    absent: str | None = None
    loads: list[float] = field(default_factory=list)


def measure(effort: Effort) -> Report:
    folder = Path(tempfile.mkdtemp(prefix="bg-"))
    report = Report(loads=[load()])
    everywhere = os.sched_getaffinity(0)
    try:
        commands = install(folder, VERSIONS)
        pin(0, OTHER_CORE)  # with all that is started from here, but for the relays
        with contextlib.ExitStack() as stack:
            port = stack.enter_context(speaking())
            relays: list[Relay] = [Chorus(folder, {"apollo": port})]
            if isinstance(commands, Path):
                relays.append(Starlette(folder, {"apollo": port}, commands))
            else:
                report.absent = commands
            for relay in relays:
                stack.enter_context(relay)
            report.relays = [Figures(title=relay.title) for relay in relays]
            _firsts(report, relays, port, effort.questions)
            for relay, figures in zip(relays, report.relays, strict=True):
                _waiting(relay, figures, port)
                _say(f"{relay.title}: full speed")
                figures.one, figures.one_cpu = _burst(relay, 1, effort.answers)
                figures.fifty, figures.fifty_cpu = _burst(relay, 50, effort.answers // 10 + 1)
                figures.crowd = _crowd(relay, ALONE, effort.seconds)
                figures.after = rss(relay.pid)
                report.loads.append(load())
            report.never = _never(relays[0], port, effort.seconds)
        os.sched_setaffinity(0, everywhere)
        report.whole = _end_to_end(folder, effort.seconds)
        report.loads.append(load())
        return report
    finally:
        os.sched_setaffinity(0, everywhere)
        shutil.rmtree(folder, ignore_errors=True)


# -- one after the other ----------------------------------------------------------------------------------------------------


def _firsts(report: Report, relays: list[Relay], port: int, questions: int) -> None:
    """Until the first token: asked directly and through each relay, in turns; connections to them are kept."""
    _say("first tokens")
    body = b'{"message":"tokens=3"}'
    post = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (PATH.encode(), len(body), body)
    with contextlib.ExitStack() as stack:
        direct = stack.enter_context(connection("127.0.0.1", port))
        through = [stack.enter_context(connection("127.0.0.1", relay.port)) for relay in relays]
        for number in range(WARM + questions):
            line = b'{"type":"chat","request_id":%d,"content":"tokens=3","stream":true}\n' % number
            took = [first_piece(direct, line, b'"stream_chunk"', b'"stream_end"')]
            took += [first_piece(one, post, b'"chunk_index":0', b"\r\n0\r\n\r\n") for one in through]
            if number >= WARM:
                report.direct.append(took[0])
                for figures, seconds in zip(report.relays, took[1:], strict=True):
                    figures.firsts.append(seconds)


def _waiting(relay: Relay, figures: Figures, port: int) -> None:
    """Memory of streams that have had one token and wait for more."""
    wait_until(lambda: _count(port)["open"] == 0)
    figures.idle = rss(relay.pid)
    with readers(Reading(port=relay.port, paths=[PATH], question="hold=1", count=IDLE, ramp=RAMP)):
        wait_until(lambda: _count(port)["open"] == IDLE)
        time.sleep(SETTLED_AFTER)
        figures.waiting = rss(relay.pid)
    wait_until(lambda: _count(port)["open"] == 0)


def _burst(relay: Relay, count: int, answers: int) -> tuple[float, float]:
    """Events a second, and processor seconds for each: a specialist writes fifty at once, as fast as they are taken."""
    question = f"tokens={BURST} together=50"
    before = cpu(relay.pid)
    with readers(Reading(port=relay.port, paths=[PATH], question=question, count=count, answers=answers)) as process:
        read = _result(process)
    assert read.tokens == count * answers * BURST, f"{relay.title}: {read.tokens} of {count * answers * BURST} tokens"
    return read.tokens / read.took, (cpu(relay.pid) - before) / read.tokens


# -- crowds -----------------------------------------------------------------------------------------------------------------


def _crowd(relay: Relay, count: int, seconds: float) -> Crowd:
    """Streams at the pace of a model."""
    tokens = round(seconds * RATE)
    _say(f"{relay.title}: {count} streams")
    return _read_by(relay, _reading(relay, count, f"tokens={tokens} rate={RATE}", seconds), tokens)


def _never(relay: Relay, port: int, seconds: float) -> Never:
    """Those who read go on while a thousand arrive who do not, until these have been cut off."""
    before, idle, cut = _crowd(relay, BESIDE, seconds), rss(relay.pid), _count(port)["cut"]
    lasting = seconds + FULL_AFTER + CUT_OFF_AFTER
    tokens = round((RAMP + lasting) * RATE)
    reading = _reading(relay, BESIDE, f"tokens={tokens} rate={RATE}", RAMP + lasting)
    sleeping = Reading(
        port=relay.port,
        paths=[PATH],
        question=f"tokens=1000000 rate={NEVER_RATE} size={LARGE}",
        count=NEVER,
        ramp=seconds,
        is_read=False,
        seconds=lasting - seconds,
    )
    with readers(sleeping), Highest(relay.pid) as highest:
        _say(f"{relay.title}: {NEVER} who never read")
        beside = _read_by(relay, reading, tokens)
        cut = _count(port)["cut"] - cut
    return Never(before=before, beside=beside, idle=idle, highest=highest.size, cut=cut)


def _end_to_end(folder: Path, seconds: float) -> Crowd:
    """A model server, specialists, the gateway, readers: nothing is pinned, and all cores do all of it."""
    tokens = round(seconds * RATE)
    options = ("--tokens", str(tokens), "--rate", str(RATE), "--stamped")
    bench = Bench()
    try:
        with model_server(*options) as url, bench.team(CHORUS_BACKEND="ollama", CHORUS_BACKEND_URL=url):
            roster = {name: bench.port_base + names.OFFSETS[name] for name in names.ROSTER}
            relay = Chorus(folder, roster, core=None)
            with relay:
                _say(f"{END_TO_END} streams end to end")
                reading = _reading(relay, END_TO_END, "hi", seconds)
                paths = [f"/api/chat/{name}/stream" for name in roster]
                return _read_by(relay, replace(reading, paths=paths), tokens)
    finally:
        shutil.rmtree(bench.home, ignore_errors=True)


def _reading(relay: Relay, count: int, question: str, seconds: float) -> Reading:
    ramp = min(RAMP, seconds / 3)
    return Reading(port=relay.port, paths=[PATH], question=question, count=count, ramp=ramp, seconds=PATIENCE + seconds)


def _read_by(relay: Relay, reading: Reading, tokens: int) -> Crowd:
    """Has a crowd read answers of so many tokens."""
    before, began = cpu(relay.pid), time.monotonic()
    with readers(reading) as process:
        read = _result(process)
    used, took = cpu(relay.pid) - before, time.monotonic() - began
    return Crowd(
        tokens=read.tokens,
        lost=max(read.lost, reading.count * tokens - read.tokens),
        p50=percentile(read.delays, 0.5),
        p99=percentile(read.delays, 0.99),
        slowest=read.delays[-1],
        use=used / took,
        cpu=used / read.tokens,
    )


class Highest:
    """The most memory that a process has held, looked at ten times a second in a thread of its own. MiB."""

    def __init__(self, pid: int) -> None:
        self.size = 0.0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self.size = max(self.size, rss(self._pid))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


# -- processes --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def speaking() -> Iterator[int]:
    """The port of a look-alike of specialists, in a process of its own."""
    process = subprocess.Popen([PYTHON, "-I", str(HERE / "speaker.py")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def readers(reading: Reading) -> Iterator[subprocess.Popen[bytes]]:
    command = [PYTHON, "-P", str(HERE / "readers.py"), msgspec.json.encode(reading).decode()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _result(process: subprocess.Popen[bytes]) -> Read:
    assert process.stdout is not None
    return msgspec.json.decode(process.stdout.read().splitlines()[-1], type=Read)


def _count(port: int) -> dict[str, int]:
    with socket.create_connection(("127.0.0.1", port)) as asked:
        asked.sendall(b'{"type":"count"}\n')
        counted: dict[str, int] = json.loads(asked.makefile("rb").readline())
        return counted


def _say(what: str) -> None:
    print(f"  {what}: load {load():.2f}", file=sys.stderr)
