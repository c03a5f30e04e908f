"""What the supervisor tells systemd besides being ready: how the team is, and that the supervisor itself still serves.

The watchdog is fed after a look at ourselves: the loop turned in time (daemon/notify.py), and the control socket answers a
question as it would anybody's. A socket that accepts no more ends in a new supervisor, and the
specialists never notice. The fork server is not asked here: one that does not answer is made good without our end.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import anyio

from daemon.notify import Systemd
from protocol.client import connect_control
from protocol.control import Status
from protocol.errors import ProtocolError
from protocol.names import GATEWAY
from supervisor.fleet.registry import Registry

logger = logging.getLogger("chorus.supervisor")

LOOK_AGAIN_AFTER = 0.5  # seconds, after a look that failed: one slow answer is not the end


async def keep_alive(systemd: Systemd, control: Path) -> None:
    """Feeds the watchdog as long as the supervisor serves, until cancelled; also on the way down."""
    if systemd.watchdog is not None:
        within = systemd.watchdog / 4
        await systemd.keep_alive(lambda: _answers(control, within))


async def _answers(control: Path, within: float) -> None:
    """Returns when the control socket has answered."""
    while True:
        try:
            with anyio.fail_after(within):
                async with connect_control(control) as connection:
                    await connection.call(Status(names=[]))
            return
        except (ProtocolError, TimeoutError) as error:
            sentence = str(error) or f"no answer within {within:g} s"
            logger.error("the control socket does not serve: %s; the watchdog is not fed", sentence)
            await anyio.sleep(LOOK_AGAIN_AFTER)


async def tell_status(systemd: Systemd, registry: Registry) -> None:
    """Says how the team is after every change, for `systemctl status`; until cancelled."""
    told = ""

    def is_news() -> bool:
        return summary(registry) != told

    while True:
        await registry.wait_for(is_news)
        told = summary(registry)
        systemd.say(f"STATUS={told}")


def summary(registry: Registry) -> str:
    """The team in one line: how many are in which state, the usual one first."""
    house = registry.report([]).supervisor
    counts = Counter(one.state.replace("_", " ") for one in registry.specialists)
    team = [f"{count} {one}" for one, count in counts.most_common()]
    if GATEWAY in registry.everybody:
        team.append(f"gateway {registry[GATEWAY].state.replace('_', ' ')}")
    return f"{house.state}: {', '.join(team)}" + (f"; {house.notice}" if house.notice else "")
