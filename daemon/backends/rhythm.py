"""How often a backend looks at its model server, and how long it lets it think. Policy; tests pass shorter ones."""

from __future__ import annotations

from msgspec import Struct


class Rhythm(Struct, frozen=True):
    """Seconds, all of them."""

    connect: float = 2.0  # a machine that is there answers a SYN in milliseconds
    quiet: float = 1.0  # nothing has arrived for so long: people are told why
    look: float = 10.0  # between two looks at the model server's state
    look_again: float = 1.0  # between two looks after a failure: a refused connection must not become a flood
    look_limit: float = 10.0  # /api/ps takes each runner's lock and may lag
    load_limit: float = 600.0  # a warm-up outlives the users who wait for it; a cold disk and 70 GB take minutes
    probe: float = 5.0  # between two attempts to find a model server where there was none: every specialist makes them
    after_finish: float = 2.0  # for the usage that follows a finish_reason, and for the end of the body


USUAL = Rhythm()
