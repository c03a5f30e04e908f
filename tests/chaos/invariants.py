"""What has to hold of a team whenever it is left alone, whatever happened before. Each sentence is a breach."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

from chaos import sight
from chaos.load import Ended
from chaos.stage import FORK_SERVER, Stage
from msgspec import Struct

QUIET_WITHIN = 20.0  # seconds after a round until everybody is ready and predecessors are gone
LOOK_EVERY = 0.1

# What a supervisor or a fork server may have more than at its first look: a connection of a command, a health question
# that is just being put, a free list that grew.
MORE_DESCRIPTORS = 6
MORE_MEMORY = 12 * 1024 * 1024
GROWTH = 6 * 1024 * 1024  # bytes along the fitted line of one whole life


class Sample(Struct, frozen=True):
    """What one process had open and in memory after so many faults."""

    who: str
    pid: int
    faults: int
    descriptors: int
    resident: int


class Flatness:
    """Descriptors and memory of the supervisor and the fork server, over the run. A life is one process."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def take(self, stage: Stage, faults: int) -> list[str]:
        """Looks at both, and says what has grown in this life beyond its first look."""
        processes = {"supervisor": stage.supervisor(), "fork server": stage.fork_server()}
        return [one for who, pid in processes.items() if pid is not None for one in self.look_at(who, pid, faults)]

    def look_at(self, who: str, pid: int, faults: int) -> list[str]:
        """The same for one process."""
        now = Sample(who, pid, faults, sight.descriptors(pid), sight.resident(pid))
        if not now.resident:
            return []  # it is gone, which is said elsewhere
        self.samples.append(now)
        first = self.life(who, pid)[0]
        complaints = []
        if now.descriptors > first.descriptors + MORE_DESCRIPTORS:
            complaints.append(f"the {who} has {now.descriptors} descriptors open, it had {first.descriptors}")
        if now.resident > first.resident + MORE_MEMORY:
            complaints.append(f"the {who} has {now.resident >> 10} KiB in memory, it had {first.resident >> 10}")
        return complaints

    def life(self, who: str, pid: int) -> list[Sample]:
        return [one for one in self.samples if one.who == who and one.pid == pid]

    def longest_life(self, who: str) -> list[Sample]:
        """The samples of the process that lived through most faults."""
        lives = [self.life(who, pid) for pid in {one.pid for one in self.samples if one.who == who}]
        return max(lives, key=lambda life: life[-1].faults - life[0].faults, default=[])

    def verdict(self) -> list[str]:
        """What grew along a line in the longest life, its first tenth aside."""
        complaints = []
        for who in ("supervisor", "fork server"):
            life = self.longest_life(who)[len(self.longest_life(who)) // 10 :]
            if len(life) < 10:
                continue
            through = life[-1].faults - life[0].faults
            grown = slope([(one.faults, one.resident) for one in life]) * through
            opened = slope([(one.faults, one.descriptors) for one in life]) * through
            if grown > GROWTH:
                complaints.append(f"the {who}'s memory grew by {grown / 1024:.0f} KiB over {through} faults")
            if opened > MORE_DESCRIPTORS:
                complaints.append(f"the {who} opened {opened:.0f} descriptors more over {through} faults")
        return complaints


def slope(points: list[tuple[int, int]]) -> float:
    """Of the line of least squares through these points; 0 where they do not make one."""
    x0 = sum(x for x, _ in points) / len(points)
    y0 = sum(y for _, y in points) / len(points)
    spread = sum((x - x0) ** 2 for x, _ in points)
    return sum((x - x0) * (y - y0) for x, y in points) / spread if spread else 0.0


async def check(stage: Stage) -> None:
    """Waits until the team is quiet and complains of what does not hold then."""
    deadline = time.monotonic() + QUIET_WITHIN
    while complaints := await look(stage):
        if time.monotonic() > deadline:
            for one in complaints:
                stage.complain(one)
            return
        await asyncio.sleep(LOOK_EVERY)


async def look(stage: Stage) -> list[str]:
    """What does not hold at this moment."""
    everybody = await stage.everybody()
    pids = {name: one["pid"] for name, one in everybody.items()}
    complaints = [
        f"{name} is {one['state']}, wanted {one['wanted']}: {one['last_error']}"
        for name, one in everybody.items()
        if one["state"] != "ready"
    ]
    return complaints or [
        *_one_process_each(stage, pids),
        *_one_listener_each(stage, pids),
        *_no_zombies(stage),
        *await _the_right_one_answers(stage, pids),
    ]


def _one_process_each(stage: Stage, pids: dict[str, int]) -> list[str]:
    complaints = []
    running = sight.processes()
    for name, pid in pids.items():
        found = [one.pid for one in running if one.words == stage.titles[name] and one.state not in "ZX"]
        if found != [pid]:
            complaints.append(f"{name}: the status says pid {pid}, and these processes bear its title: {found}")
    inode = stage.fork_server()
    ours = {one.parent for one in running if one.words in stage.titles.values()}
    servers = [one.pid for one in running if one.words == FORK_SERVER and (one.pid in ours or one.pid == inode)]
    if len(servers) != 1:
        complaints.append(f"there are {len(servers)} fork servers: {servers}")
    return complaints


def _one_listener_each(stage: Stage, pids: dict[str, int]) -> list[str]:
    """One listening socket for each port and family, and nobody but its specialist and whoever holds it has it open."""
    complaints = []
    server = stage.fork_server()
    had = {pid: sight.sockets(pid) for pid in (*pids.values(), server or 0)}
    for port, found in sight.listeners(set(stage.ports.values())).items():
        [name] = [name for name, its in stage.ports.items() if its == port]
        if "tcp" not in found:
            complaints.append(f"{name}: nobody listens on port {port}")
        for family, inodes in found.items():
            if len(inodes) != 1:
                complaints.append(f"{name}: {len(inodes)} sockets listen on {family} port {port}")
            holders = {pid for pid, sockets in had.items() if sockets & inodes}
            if holders != {pids[name], server}:
                complaints.append(f"{name}: its {family} listener is held by {holders}, not {pids[name]} and {server}")
    return complaints


def _no_zombies(stage: Stage) -> list[str]:
    parents = {stage.supervisor(), stage.fork_server()}
    return [
        f"pid {one.pid} is a zombie of {one.parent}"
        for one in sight.processes()
        if one.state == "Z" and one.parent in parents
    ]


async def _the_right_one_answers(stage: Stage, pids: dict[str, int]) -> list[str]:
    complaints = []
    for name, pid in pids.items():
        try:
            async with asyncio.timeout(stage.settings.hung_after):
                answered = (await stage.health(name))["pid"]
            if answered != pid:
                complaints.append(f"{name}: the status says pid {pid}, and {answered} answers")
        except (Ended, TimeoutError) as end:
            complaints.append(f"{name}: a question for its health ended with {end!r}")
    return complaints


def one_supervisor(stage: Stage) -> list[str]:
    """Exactly one process holds the lock of the state folder, and it is the one that is written there."""
    lock = os.stat(stage.state / "supervisor.lock")
    holders = {
        int(pid)
        for line in Path("/proc/locks").read_text().splitlines()
        for pid, place in [(line.split()[-4], line.split()[-3])]
        if place.endswith(f":{lock.st_ino}") and pid.isdigit() and "FLOCK" in line
    }
    expected = {stage.supervisor()}
    return [] if holders == expected else [f"the lock is held by {holders}, and {expected} is the supervisor"]


def event_log(stage: Stage) -> list[str]:
    """The events on disk: every number once, over all supervisors, and everything in it that was told aloud."""
    complaints = []
    recorded: dict[int, tuple[str, str]] = {}
    last = None
    for number in (3, 2, 1, 0):
        path = stage.state / ("events.ndjson" if number == 0 else f"events.ndjson.{number}")
        for line in path.read_bytes().splitlines() if path.exists() else []:
            try:
                event = json.loads(line)
            except ValueError:
                complaints.append(f"an event on disk cannot be read: {line[:200]!r}")
                continue
            if last is not None and event["seq"] != last + 1:
                complaints.append(f"events on disk have a hole: {event['seq']} stands behind {last}")
            last = event["seq"]
            recorded[last] = (event["name"], event["to"])
    oldest = min(recorded, default=0)
    missing = [
        one.seq for one in stage.witness.changes if one.seq >= oldest and recorded.get(one.seq) != (one.name, one.to)
    ]
    if missing:
        complaints.append(f"{len(missing)} events were told and are not on disk so, the first is {missing[0]}")
    return complaints
