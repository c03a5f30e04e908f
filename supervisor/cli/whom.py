"""Whom a command asks: names in any spelling, the place where each one listens, and who is free.

The supervisor knows. Where none answers, the configured ports are tried: a specialist may run alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence

import anyio
from msgspec import Struct

from protocol import names as spelling
from protocol.client import connect
from protocol.control import SpecialistStatus, StatusReport
from protocol.errors import PeerError, ProtocolError
from protocol.messages import Ping, Pong
from supervisor.cli.exits import Exit, Failure, not_running
from supervisor.config import Loaded
from supervisor.team.routing import ANSWERING, Choice
from supervisor.team.rulebook import Rulebook

SUPERVISOR_WITHIN = 3.0  # seconds; one that does not answer is treated as one that is not there
PONG_WITHIN = 2.0  # seconds a specialist without a supervisor has to say that it is one
ABSENT = frozenset({"stopped", "backing_off", "failed"})  # no process of ours is behind the port
LONG = 8  # letters from which two typing mistakes still leave a name recognisable
SHORT = 5  # letters under which one mistake makes another word

# English words one or two typing mistakes away from a name of the roster: they begin questions.
ORDINARY = frozenset(
    """
    engrams anagram herpes hermits heroes argon ergo ergot erg rhetoric rhetors rector term terms terra herma derma dharma
    karma thermal perma athens promethean promethium harmony harmonic harmonics harmonica harmonies harmonise harmonize
    tells tales telco synthesise synthesize syntheses synthesised synthesized synthetic metes meets mets melts metric
    metrics apollos penis xenia sophie poesis genesis noises budgets budge budgie budgeted gadget widget tetons teton
    """.split()  # noqa: SIM905 - a list would be one word a line
)


class Place(Struct, frozen=True):
    """Where a specialist listens. `state` is None where no supervisor says it; `position` is its place in the roster."""

    name: str
    host: str
    port: int
    position: int
    state: str | None = None


class Colleagues:
    """Everybody who could be asked, as known at one moment. `report` is None without a supervisor."""

    def __init__(self, loaded: Loaded, report: StatusReport | None) -> None:
        self.loaded = loaded
        self.report = report
        settings = loaded.settings
        self.roster = [one.name for one in report.specialists] if report else list(settings.roster)
        self.known = list(dict.fromkeys([*self.roster, *settings.roster, *settings.specialists, *spelling.ROSTER]))

    def name(self, word: str) -> str | None:
        """The name that a word is, in any spelling; None for a word that is none."""
        name = spelling.canonical(word)
        return name if name in self.known else None

    def named(self, word: str) -> str:
        """The name that a word must be; Failure (exit 4) with the nearest ones."""
        return self.name(word) or _no_such(word, spelling.near(word, self.known), self.roster)

    def status(self, name: str) -> SpecialistStatus | None:
        return next((one for one in self.report.specialists if one.name == name), None) if self.report else None

    def place(self, name: str) -> Place:
        """Where a known specialist listens; whether it does is seen by asking."""
        position = self.roster.index(name) if name in self.roster else len(self.roster)
        if status := self.status(name):
            return Place(name, status.host, status.port, position, status.state)
        from supervisor.roster import port_of

        host = self.loaded.settings.host
        host = "127.0.0.1" if host in ("localhost", "0.0.0.0") else host  # where it listens, not where it is asked
        return Place(name, host, port_of(self.loaded, name), position)

    def to_ask(self, name: str) -> Place:
        """Where to ask a known specialist; Failure (exit 3) where the supervisor knows that it is not there.

        Its port may be somebody else's then, and a question is not for strangers.
        """
        status = self.status(name)
        if status is not None and status.state in ABSENT:
            raise self.unreachable(name)
        return self.place(name)

    async def choose(self, question: str) -> Choice:
        """Who answers when nobody was named, by the orchestration rules. Failure (exit 3) where nobody can."""
        if self.report is not None:
            team = self.report.specialists
        elif not (team := [_alone(place) for place in await self.alone(self.roster)]):
            raise not_running()
        rulebook = Rulebook(self.loaded.dirs.state)
        for rule in rulebook.rules.routing_rules:
            rulebook.turns[rule.pattern] = random.randrange(1 << 20)  # a command is over before it could count
        choice = rulebook.choose(question, team)
        if choice is None:
            raise Failure("no specialist is ready", Exit.NOT_RUNNING, remedy="chorus status", code="not_running")
        return choice

    async def alone(self, names: Sequence[str]) -> list[Place]:
        """Those of these that answer on their ports without a supervisor, in the same order."""
        found: dict[str, Place] = {}

        async def look(name: str) -> None:
            place = self.place(name)
            if await answers(place):
                found[name] = place

        async with anyio.create_task_group() as group:
            for name in names:
                group.start_soon(look, name)
        return [found[name] for name in names if name in found]

    def unreachable(self, name: str) -> Failure:
        """What to say of one that nobody could be reached behind."""
        if self.report is None:
            what = f"the team is not running, and nobody answers as {name} on port {self.place(name).port}"
            return not_running(what)
        status = self.status(name)
        if status is None:
            what = f"{name} is not in this team, and nobody answers as {name} on port {self.place(name).port}"
            remedy = f"the team is {', '.join(self.roster)}"
            return Failure(what, Exit.NO_SUCH_SPECIALIST, remedy=remedy, code="not_found")
        what = f"{name} is {status.state}" + (f": {status.last_error}" if status.last_error else "")
        return Failure(what, Exit.NOT_RUNNING, remedy=status.remedy or remedy_for(status), code="not_running")


def _alone(place: Place) -> SpecialistStatus:
    """One that answers without a supervisor, as one would tell of it."""
    ai_id = spelling.ai_id(place.name)
    return SpecialistStatus(
        name=place.name, ai_id=ai_id, host=place.host, port=place.port, state=ANSWERING[0], wanted="up"
    )


def remedy_for(status: SpecialistStatus) -> str:
    """What gets a specialist back."""
    return f"chorus start {status.name}" if status.wanted != "up" else f"chorus logs {status.name}"


async def colleagues(loaded: Loaded) -> Colleagues:
    """Everybody, as the supervisor says, or as the configuration does where none answers."""
    from supervisor.cli.reach import report

    with anyio.move_on_after(SUPERVISOR_WITHIN):
        try:
            return Colleagues(loaded, await report(loaded))
        except (Failure, PeerError):
            pass  # not running, or not any more
    return Colleagues(loaded, None)


async def answers(place: Place) -> bool:
    """Whether the one who was expected is behind this port."""
    with anyio.move_on_after(PONG_WITHIN):
        try:
            async with connect(place.host, place.port) as connection:
                pong = await connection.call(Ping())
        except ProtocolError:
            return False
        return isinstance(pong, Pong) and spelling.canonical(pong.ai_id) == place.name
    return False


def near_miss(word: str, known: Iterable[str]) -> list[str]:
    """The names that a word must be a misspelling of: one typing mistake away, two for a long name, and no English word.

    Strict, because a false alarm refuses a question: short names and ordinary words never count.
    """
    plain = spelling.canonical(word)
    if not re.fullmatch(r"[a-z_]+", plain) or plain in ORDINARY:
        return []
    found = []
    for name in known:
        for one in (name, *spelling.spellings(name)):
            allowed = 2 if len(one) >= LONG else 1 if len(one) >= SHORT else 0
            if allowed and 0 < mistakes(plain, one, allowed) <= allowed:
                found.append(name)
    return list(dict.fromkeys(found))


def mistakes(typed: str, meant: str, limit: int) -> int:
    """How many letters were left out, added, exchanged or swapped with a neighbour (Damerau and Levenshtein)."""
    if abs(len(typed) - len(meant)) > limit:
        return limit + 1
    before: list[int] = []
    last = list(range(len(meant) + 1))
    for at, letter in enumerate(typed, 1):
        row = [at]
        for to, other in enumerate(meant, 1):
            cost = min(last[to] + 1, row[to - 1] + 1, last[to - 1] + (letter != other))
            if at > 1 and to > 1 and letter == meant[to - 2] and typed[at - 2] == other:
                cost = min(cost, before[to - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


def misspelt(word: str, near: list[str]) -> Failure:
    """The failure for a first word that is nearly a name."""
    hint = f"did you mean {' or '.join(near)}?"
    remedy = f"chorus ask {near[0]} ...; chorus ask -- {word} ... where the word is part of the question"
    return Failure(f'there is no specialist "{word}": {hint}', Exit.NO_SUCH_SPECIALIST, remedy=remedy, code="not_found")


def _no_such(word: str, near: list[str], roster: list[str]) -> str:
    hint = f"did you mean {' or '.join(near)}?" if near else f"the team is {', '.join(roster)}"
    raise Failure(f'there is no specialist "{word}": {hint}', Exit.NO_SUCH_SPECIALIST, code="not_found")
