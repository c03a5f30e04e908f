"""Whom a question is for that names nobody: the orchestration rules, with what is known of the team at this moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio
from msgspec.structs import replace

from protocol.errors import Unavailable
from supervisor.team.routing import Choice, Orchestration
from supervisor.team.rulebook import Rulebook

if TYPE_CHECKING:
    from supervisor.gateway.team import Team

FRESH_FOR = 1.0  # seconds that figures of the team are good for: the supervisor itself looks every two
RETRY_AFTER = 2.0


class Router:
    """Chooses who answers. `given` counts what was given to whom from here and is under way: figures are older than that."""

    def __init__(self, team: Team, rulebook: Rulebook) -> None:
        self._team = team
        self._rulebook = rulebook
        self._given: Counter[str] = Counter()
        self._looked = -FRESH_FOR

    @property
    def rules(self) -> Orchestration:
        """The rules in force."""
        return self._rulebook.rules

    async def choose(self, message: str) -> Choice:
        """Who answers this message. Raises Unavailable where nobody can be asked."""
        now = anyio.current_time()
        if now - self._looked >= FRESH_FOR:
            self._looked = now  # first, so that of many questions at once one has the look made
            await self._team.renewed()
        team = [
            replace(one, in_flight=max(one.in_flight, self._given[one.name] - one.queued))
            for one in self._team.specialists
        ]
        choice = self._rulebook.choose(message, team)
        if choice is None:
            raise Unavailable("no specialist is ready: chorus status says why", retry_after=RETRY_AFTER)
        return choice

    @contextmanager
    def gives(self, name: str) -> Iterator[None]:
        """For as long as one has a question from here."""
        self._given[name] += 1
        try:
            yield
        finally:
            self._given[name] -= 1
