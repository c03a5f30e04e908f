"""All checks, side by side, in a fixed order. Nothing here takes longer than the slowest of them."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
import psutil

from protocol.control import StatusReport
from protocol.settings import SpecialistConfig
from supervisor import roster
from supervisor.checkup import machine, ports, team
from supervisor.checkup.check import Check
from supervisor.checkup.models import models
from supervisor.checkup.team import Heard
from supervisor.config import Loaded


async def checkup(
    loaded: Loaded, report: StatusReport | None, environ: Mapping[str, str], *, answered: bool, deep: bool
) -> list[Check]:
    """Everything. `report` is the supervisor's word where `answered`, else what the last one wrote, if there was one."""
    everybody = roster.children(loaded)
    configs = [one for one in everybody if isinstance(one, SpecialistConfig)]
    of_models: list[Check] = []
    heard: dict[str, Heard] = {}

    async def ask_model_server() -> None:
        of_models.extend(await models(loaded, configs, report if answered else None))

    async def ask_team() -> None:
        heard.update(await team.ask_all(everybody))

    async with anyio.create_task_group() as group:
        group.start_soon(ask_model_server)
        group.start_soon(ask_team)
    answering = {name for name, one in heard.items() if one.health is not None}
    pids = _pids(report if answered else None, heard)
    wanted = ports.claims(everybody)
    of_ports = await anyio.to_thread.run_sync(lambda: list(ports.ports(wanted, pids, answering)))
    restarter = loaded.settings.supervision.restarter
    known = {one.name: one for one in report.everybody} if report else {}
    of_team = [
        team.member(config, heard[config.name], known.get(config.name), supervised=answered) for config in everybody
    ]
    tokens = [await team.one_token(config) for config in configs if config.name in answering] if deep else []
    return [
        *machine.versions(),
        machine.configuration(loaded),
        team.supervisor(report, answered=answered, socket=loaded.socket),
        *(check for check in [team.restarter(report if answered else None, restarter), *of_team] if check),
        *of_ports,
        *(check for check in [ports.ephemeral(claim.port for claim in wanted)] if check),
        *of_models,
        *tokens,
        machine.proxies(environ, loaded.url),
        *machine.disk(loaded),
        machine.descriptors(loaded),
        machine.kernel_look(),
        machine.clock(loaded),
    ]


def _pids(report: StatusReport | None, heard: Mapping[str, Heard]) -> set[int]:
    """Of the supervisor, of those that answered, and of their parent, the fork server: it holds the sockets too."""
    pids = {one.health.pid for one in heard.values() if one.health}
    pids |= {one.pid for one in report.everybody if one.pid} if report else set()
    for pid in list(pids):
        try:
            pids.add(psutil.Process(pid).ppid())
        except psutil.Error:
            continue
    if report:
        pids |= {report.supervisor.pid} if report.supervisor.pid else set()
    return pids - {0, 1}
