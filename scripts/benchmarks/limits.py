"""Chorus beside its bare limit: the least that the machine allows for the same job, measured in the same run.

The bare limit is the imports without the program, a loaded Python without a team, a question put to the model server
directly.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.instruments import PYTHON, ROOT, connection, cpu, ms, percentile, ping, pss, timed, wait_until
from benchmarks.team import OFFSETS, TEAM, Bench


def up(bench: Bench) -> None:
    """From the command to all 18 having answered a health check."""
    imports = "import aiohttp, anyio, click, msgspec, psutil, sqlite3, logging.handlers"
    fork = (
        f"{imports}, os\nfor _ in range({TEAM}):\n    if not os.fork(): os._exit(0)\nfor _ in range({TEAM}): os.wait()"
    )
    bench.chorus("--version")  # compiled once: an installed program is not compiled at every start
    bare, ours = [], []
    for _ in range(7):
        bare.append(timed(lambda: subprocess.run([PYTHON, "-c", fork], check=True)))
        ours.append(timed(lambda: bench.chorus("up")))
        bench.chorus("down")
    bench.row("up until 18 have answered", ms(ours), f"{ms(bare)} (the same imports and 18 forks)", "<= 500 ms")


def memory(bench: Bench) -> None:
    """Proportional set size of everything that runs, idle."""
    with bench.team():
        pids = bench.processes()
        total = sum(pss(pid) for pid in pids)
    idle = "import asyncio, aiohttp, msgspec; asyncio.run(asyncio.sleep(60))"
    alone = [subprocess.Popen([PYTHON, "-c", idle]) for _ in range(3)]
    wait_until(lambda: all(pss(one.pid) > 15 for one in alone))
    time.sleep(1)
    bare = statistics.median(pss(one.pid) for one in alone) * TEAM
    for one in alone:
        one.kill()
        one.wait()
    bench.row(
        f"memory of {len(pids)} processes (PSS)",
        f"{total:.0f} MiB",
        f"{bare:.0f} MiB (18 interpreters that import aiohttp)",
        "<= 120 MiB",
    )


def idle(bench: Bench) -> None:
    """Processor time while nobody asks anything, health checks on."""
    with bench.team():
        pids = bench.processes()
        time.sleep(3)
        before, began = sum(map(cpu, pids)), time.monotonic()
        time.sleep(30)
        used = (sum(map(cpu, pids)) - before) / (time.monotonic() - began)
    bare = f"0 % (we ask {TEAM / 2:g} health questions a second)"
    bench.row("idle processor use", f"{used * 100:.2f} % of a core", bare, "<= 0.5 %")


def restart(bench: Bench) -> None:
    """kill -9 until the same port answers a ping from a new process."""
    with bench.team():
        healed, live = [], []
        for number in range(100):
            one = bench_target(bench, number)
            live.append(timed(partial(ping, one[1])))
            began = time.perf_counter()
            os.kill(one[0], 9)
            while ping(one[1])["pid"] == one[0]:
                pass
            healed.append(time.perf_counter() - began)
            wait_until(partial(is_replaced, bench, number, one[0]))
            if number % TEAM == TEAM - 1:
                time.sleep(10.5)  # ten seconds of readiness forgive; the crash loop is not what is measured
    p99 = percentile(healed, 0.99) * 1000
    bench.row("kill -9 to answer, p50", ms(healed), f"{ms(live)} (a ping to a live one)", "<= 10 ms")
    bench.row("kill -9 to answer, p99", f"{p99:.1f} ms", "", "<= 30 ms")


def first_token(bench: Bench) -> None:
    """What a specialist adds before the first token, against the same question put to the model server."""
    with model_server("--tokens", "3") as url, bench.team(CHORUS_BACKEND="ollama", CHORUS_BACKEND_URL=url):
        host, port = url.removeprefix("http://").split(":")
        direct = connection(host, int(port))
        body = json.dumps({"model": "tiny:latest", "messages": [{"role": "user", "content": "hi"}]}).encode()
        post = b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        through = connection("127.0.0.1", bench.port_base + 3)
        bare, ours = [], []
        for number in range(600):
            bare.append(first_piece(direct, post % (len(body), body), b'"content":', b"\r\n0\r\n\r\n"))
            line = b'{"type":"chat","request_id":%d,"content":"hi","stream":true}\n' % number
            ours.append(first_piece(through, line, b'"stream_chunk"', b'"stream_end"'))
        added = statistics.median(ours[100:]) - statistics.median(bare[100:])
    bench.row("first token, added", f"{added * 1000:.2f} ms", f"{ms(bare[100:])} (asked directly)", "<= 1 ms")


def relay(bench: Bench) -> None:
    """Tokens a second on one stream: many in one write of the model server, and each in a write of its own."""
    for what, options, target in (
        ("relay, tokens together", ("--tokens", "1000000", "--burst", "500"), ">= 250,000 /s"),
        ("relay, tokens alone", ("--tokens", "300000"), ">= 60,000 /s"),
    ):
        environ = {"CHORUS_BACKEND": "ollama"}
        with model_server(*options) as url, bench.team(CHORUS_BACKEND_URL=url, **environ):
            host, port = url.removeprefix("http://").split(":")
            count = int(options[1])
            bare, ours = [], []
            for number in range(3):
                body = json.dumps({"model": "tiny:latest", "messages": [{"role": "user", "content": "hi"}]}).encode()
                post = b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
                with connection(host, int(port)) as direct:
                    bare.append(count / timed(partial(read_until, direct, post, b'"done":true')))
                line = b'{"type":"chat","request_id":%d,"content":"hi","stream":true,"final":"short"}\n' % number
                with connection("127.0.0.1", bench.port_base + 3) as through:
                    ours.append(count / timed(partial(read_until, through, line, b'"stream_end"')))
        bench.row(
            what, f"{statistics.median(ours):,.0f} /s", f"{statistics.median(bare):,.0f} /s (read directly)", target
        )


def status(bench: Bench) -> None:
    """The command that people and scripts call most."""
    with bench.team():
        bare, ours = [], []
        for _ in range(21):
            bare.append(
                timed(lambda: subprocess.run([PYTHON, "-c", "import click, msgspec, anyio, asyncio"], check=True))
            )
            ours.append(timed(lambda: bench.chorus("status")))
    bench.row("chorus status", ms(ours), f"{ms(bare)} (its imports)", "<= 150 ms")


# -- instruments of their own ---------------------------------------------------------------------------------------------


def bench_target(bench: Bench, number: int) -> tuple[int, int]:
    port = bench.port_base + OFFSETS[number % TEAM]
    pid = ping(port)["pid"]
    assert isinstance(pid, int)
    return pid, port


def is_replaced(bench: Bench, number: int, old: int) -> bool:
    one = bench.specialists()[number % TEAM]
    return one["state"] == "ready" and one["pid"] != old


def first_piece(to: socket.socket, question: bytes, first: bytes, last: bytes) -> float:
    """Seconds from a question to its first token; the rest of the answer is read outside the measurement."""
    began = time.perf_counter()
    to.sendall(question)
    seen = b""
    while first not in seen:
        seen += to.recv(65536)
    took = time.perf_counter() - began
    while last not in seen:
        seen = seen[-64:] + to.recv(65536)
    return took


def read_until(to: socket.socket, question: bytes, last: bytes) -> None:
    to.sendall(question)
    tail = b""
    while last not in tail:
        tail = tail[-64:] + to.recv(1 << 20)


@contextlib.contextmanager
def model_server(*options: str) -> Iterator[str]:
    """The look-alike of an Ollama, in a process of its own."""
    script = ROOT / "tests" / "lookalikes" / "ollama.py"
    process = subprocess.Popen([PYTHON, str(script), *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.kill()
        process.wait()


MEASUREMENTS: dict[str, Callable[[Bench], None]] = {
    "up": up,
    "memory": memory,
    "idle": idle,
    "restart": restart,
    "first-token": first_token,
    "relay": relay,
    "status": status,
}
