"""A team under chaos, as faults and checks see it: who is who, what is asked of it, and everything that was not as promised.

Whoever dies by our hand may cut what it had under way, and only then: `dying` is told before every such fault.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chaos import sight
from chaos.load import GATEWAY, HONEST, Ended, Outcome, health, http_health
from chaos.machine import Machine
from chaos.orders.sitecustomize import ORDER
from chaos.witness import Witness, ask_supervisor
from msgspec import Struct
from team import Team

from protocol.settings import Supervision
from supervisor.fleet.calls import title

LOOK_EVERY = 0.005  # seconds between two looks at something that has no event
AFTERMATH = 1.0  # seconds after a recovery in which a client may still find what the death has cut
FORK_SERVER = "chorus: fork server"
SPARE = "chorus: spare"  # how the title of its child begins that is nobody yet
UNKNOWN = "nobody was there to learn how"
WRITING_STACKS = (
    "SIGSEGV"  # faulthandler walks the frames of threads that run: one time in hundreds that ends the process
)


class Breach(Struct):
    """Something that was promised and not kept. `during` is the fault; `at` seconds from the start of the run.

    The same promise broken to the same one again is one breach with more `times`.
    """

    at: float
    during: str
    sentence: str
    key: str
    times: int = 1


class Before(Struct, frozen=True):
    """A specialist as it was before a fault. Only its parent learns how an adopted process ended."""

    name: str
    pid: int
    restarts: int
    is_adopted: bool

    @property
    def unknown(self) -> tuple[None, None] | None:
        """What the status may say besides of code and signal."""
        return (None, None) if self.is_adopted else None


class Stage:
    """One team, up, with its clients and its witness. `names` are whom faults hit: specialists, and the gateway."""

    def __init__(
        self, team: Team, names: list[str], machine: Machine, settings: Supervision, patience: float = 0.0
    ) -> None:
        self.team = team
        self.patience = patience  # seconds that everything may take longer, on a machine that has other work
        self.names = names
        self.machine = machine
        self.settings = settings
        self.state = team.home / ".local/state/chorus"
        self.orders = Path(team.env["CHAOS_ORDERS"])
        self.ports = {name: team.gateway_port if name == GATEWAY else team.port(name) for name in names}
        self.titles = {name: title(name, port) for name, port in self.ports.items()}
        self.breaches: list[Breach] = []
        self.during = "the start"
        self.unknown = 0  # ends of adopted processes of which nobody knows how they came
        self.also_honest: frozenset[str] = frozenset()  # codes of errors that this round's faults excuse
        self.witness = Witness(self.state / "socket", self.complain)
        self._began = time.monotonic()
        self._deaths: dict[str, list[list[float]]] = {name: [] for name in names}

    def complain(self, sentence: str, key: str = "") -> None:
        """A promise was broken. Those of one round with the same key are counted together."""
        for one in self.breaches:
            if key and (one.during, one.key) == (self.during, key):
                one.times += 1
                return
        self.breaches.append(Breach(round(time.monotonic() - self._began, 2), self.during, sentence, key))
        print(f"  BROKEN ({self.during}): {sentence}", flush=True)

    # -- clients ------------------------------------------------------------------------------------------------------------

    @contextmanager
    def dying(self, *names: str) -> Iterator[None]:
        """Inside, and a moment longer, what these had under way may be cut, or refused with an honest reason."""
        spans = [[time.monotonic(), math.inf] for _ in names]
        for name, span in zip(names, spans, strict=True):
            self._deaths[name].append(span)
        try:
            yield
        finally:
            for span in spans:
                span[1] = time.monotonic() + AFTERMATH

    def judge(self, outcome: Outcome) -> None:
        """Whether what came of a client's question is as promised."""
        if outcome.what == "answered":
            return
        is_excused = any(outcome.began <= end and begin <= outcome.ended for begin, end in self._deaths[outcome.name])
        if not (is_excused and (outcome.what == "cut" or outcome.what in HONEST | self.also_honest)):
            took = outcome.ended - outcome.began
            sentence = (
                f"a client of {outcome.name} ({outcome.kind}), after {took:.2f} s: {outcome.what} {outcome.detail}"
            )
            self.complain(sentence, f"{outcome.name} {outcome.what}")

    # -- who is who -----------------------------------------------------------------------------------------------------------

    def supervisor(self) -> int:
        return int((self.state / "supervisor.lock").read_text())

    def fork_server(self) -> int | None:
        """Whoever holds the socket that supervisors connect to."""
        try:
            inode = sight.unix_listener(Path((self.state / "forkserver").read_text().strip()))
        except OSError:
            return None
        holders = [one.pid for one in sight.processes() if one.words == FORK_SERVER and one.state not in "ZX"]
        return next((pid for pid in holders if inode in sight.sockets(pid)), None)

    async def report(self, within: float = 30.0) -> dict[str, Any]:
        """What the supervisor says of everything, as soon as there is one to ask."""
        async with asyncio.timeout(within):
            while True:
                try:
                    told = await ask_supervisor(self.state / "socket", {"type": "status"})
                    return dict(told["status"])
                except OSError:
                    await asyncio.sleep(LOOK_EVERY)

    async def everybody(self) -> dict[str, dict[str, Any]]:
        """What the supervisor says of each of them, by name."""
        report = await self.report()
        known = {GATEWAY: report[GATEWAY], **{one["name"]: one for one in report["specialists"]}}
        return {name: known[name] for name in self.names}

    async def status(self, name: str) -> dict[str, Any]:
        """What the supervisor says of one of them."""
        return (await self.everybody())[name]

    async def health(self, name: str) -> dict[str, Any]:
        """What whoever accepts in its place says of itself; raises Ended."""
        return await (http_health if name == GATEWAY else health)(self.ports[name])

    async def before(self, name: str) -> Before:
        """A specialist, before something is done to it."""
        seen = await self.status(name)
        parent = sight.process(seen["pid"])
        is_adopted = parent is not None and parent.parent != self.fork_server()
        return Before(name, seen["pid"], seen["restarts"], is_adopted)

    async def until(
        self, name: str, holds: Callable[[dict[str, Any]], bool], within: float, what: str
    ) -> dict[str, Any]:
        """The status of a specialist as soon as something holds of it; a breach when it does not in time."""
        deadline = time.monotonic() + within + self.patience
        while not holds(seen := await self.status(name)):
            if time.monotonic() > deadline:
                self.complain(f"{name}: not {what} within {within:g} s: {seen}")
                return seen
            await asyncio.sleep(4 * LOOK_EVERY)
        return seen

    async def rested(self, name: str, seconds: float) -> None:
        """Waits until a specialist is ready, and has been for so long when it failed in this supervisor's life."""
        while True:
            await self.until(name, lambda one: one["state"] == "ready", 90.0, "ready again")
            heard = self.witness.since(self.witness.life_began, name)
            failed = [one.heard for one in heard if one.to == "backing_off"]
            ready = [one.heard for one in heard if one.to == "ready"]
            left = max(ready, default=0.0) + seconds - time.monotonic() if failed else 0.0
            if left <= 0:
                return
            await asyncio.sleep(left)

    # -- doing --------------------------------------------------------------------------------------------------------------

    def order(self, pid: int, what: str) -> None:
        """Has a specialist's process do something from inside."""
        (self.orders / str(pid)).write_text(what)
        os.kill(pid, ORDER)

    async def answered_by_another(self, name: str, old: int, within: float, began: float) -> float | None:
        """Seconds from `began` until somebody else than `old` answers there; None, and a breach, when nobody does in time."""
        deadline = began + within + self.patience
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    if (await self.health(name))["pid"] != old:
                        return time.monotonic() - began
            except Ended as end:
                if end.what == "refused":
                    took = time.monotonic() - began
                    self.complain(f"{name} refused a connection {took:.3f} s after the fault", f"{name} refused")
            except TimeoutError:
                self.complain(f"{name} was not answered by another process than {old} within {within:g} s")
                return None
            await asyncio.sleep(LOOK_EVERY)

    async def ended_as(self, before: Before, *, code: int | None, signal: str | None, cause: str) -> None:
        """The status of a specialist has to tell its last end as it was, and count it once."""
        name = before.name

        def told(one: dict[str, Any]) -> bool:
            return bool(one["restarts"] > before.restarts and one["state"] == "ready")

        seen = await self.until(name, told, 5.0, "ready with its end counted")
        last = seen.get("last_exit") or {}
        if cause == "hung" and last.get("signal") == WRITING_STACKS:
            signal = WRITING_STACKS
        if before.is_adopted and UNKNOWN in last.get("cause", ""):
            self.unknown += 1
        elif (last.get("code"), last.get("signal")) not in ((code, signal), before.unknown) or cause not in last.get(
            "cause", ""
        ):
            self.complain(f"{name}: ended with code {code}, signal {signal} ({cause}), and the status says {last}")
        if seen["restarts"] != before.restarts + 1:
            self.complain(f"{name}: one end, and its restarts went from {before.restarts} to {seen['restarts']}")

    async def start_supervisor(self) -> None:
        """As an operator or a service manager would."""
        done = await asyncio.to_thread(self.team.run, "up")
        if done.returncode:
            self.complain(f"`chorus up` ended with {done.returncode}: {done.stdout}{done.stderr}")
