"""The orchestration rules on disk: written by the supervisor alone, in force at once for every process that asks here.

A reader looks at the file's inode, size and time at each question, which takes microseconds, and reads it when one of them is
another one.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from protocol.control import SpecialistStatus
from protocol.errors import Unavailable
from supervisor.team.pattern import BadPattern
from supervisor.team.routing import Choice, Orchestration, choose, pattern_of

logger = logging.getLogger("chorus.team")

FILE = "orchestration.json"  # in the state folder

_decode = msgspec.json.Decoder(Orchestration).decode


class Rulebook:
    """The rules as they are now. `turns` counts in this process how often each pattern had somebody chosen."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FILE
        self.turns: Counter[str] = Counter()
        self._rules = Orchestration()
        self._seen: tuple[int, int, int] | None = None

    @property
    def rules(self) -> Orchestration:
        """The rules in force; none where nobody has set any. A file that cannot be read changes nothing."""
        try:
            now = os.stat(self.path)
        except OSError:
            self._rules, self._seen = Orchestration(), None
            return self._rules
        seen = (now.st_ino, now.st_size, now.st_mtime_ns)
        if seen != self._seen:
            self._seen = seen
            try:
                rules = _decode(self.path.read_bytes())
                for rule in rules.routing_rules:
                    pattern_of(rule.pattern)
                self._rules = rules
            except (OSError, msgspec.MsgspecError, BadPattern) as error:
                logger.error("%s is left out, and the rules before it stay in force: %s", self.path, error)
        return self._rules

    def choose(self, message: str, team: Sequence[SpecialistStatus]) -> Choice | None:
        """Who answers a message, by the rules as they are now; None where nobody can."""
        rules = self.rules
        choice = choose(rules, message, team, self.turns)
        if choice is not None and choice.rule is not None:
            self.turns[rules.routing_rules[choice.rule].pattern] += 1
        return choice

    def write(self, rules: Orchestration) -> None:
        """Puts these in the place of all others, whole or not at all. Raises Unavailable where the disk does not take them."""
        draft = self.path.with_name(f".{FILE}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft.write_bytes(msgspec.json.format(msgspec.json.encode(rules), indent=2) + b"\n")
            draft.replace(self.path)
        except OSError as error:
            raise Unavailable(f"cannot write {self.path}: {error.strerror}; the rules are what they were") from None
