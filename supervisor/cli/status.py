"""`chorus status`: who is there, how they are, and what to do where something is wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from protocol import names as spelling
from protocol.control import AS_ASKED, DISABLED, Configured, GatewayStatus, KeptStatus, SpecialistStatus, StatusReport
from protocol.names import GATEWAY
from supervisor.cli import look
from supervisor.cli.context import surroundings_of
from supervisor.cli.exits import Exit, Failure
from supervisor.config import Loaded, changed_at

HEADER = ("NAME", "STATE", "PORT", "PID", "UPTIME", "RESTARTS", "MODEL", "TOK/S", "MEMORY", "LAST ERROR")
UP = ("ready", "degraded")


@click.command("status")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; a line for each change with --watch.")
@click.option("--watch", is_flag=True, help="Go on showing every change.")
@click.option(
    "--check", is_flag=True, help="Say it by the exit code: 0 all ready, 1 not all is well, 3 down, 4 no such name."
)
@click.pass_context
def status_command(ctx: click.Context, names: tuple[str, ...], as_json: bool, watch: bool, check: bool) -> int:
    """Show the team, or some of it."""
    loaded = surroundings_of(ctx)
    chosen = list(names) or None
    if watch:
        import anyio

        from supervisor.cli.watch import watch_status

        return anyio.run(watch_status, loaded, chosen, as_json)
    report, answered = _report(loaded, chosen)
    if report is None:
        from supervisor.cli.reach import nobody_answers

        raise nobody_answers()
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
    else:
        print_status(for_people(report, chosen))
    if not answered:
        return Exit.NOT_RUNNING
    return checked(for_people(report, chosen)) if check else Exit.DONE


def for_people(report: StatusReport, names: Sequence[str] | None) -> StatusReport:
    """The report without the gateway where others were asked for. Programs are always told of it."""
    if names is None or GATEWAY in map(spelling.canonical, names):
        return report
    return msgspec.structs.replace(report, gateway=GatewayStatus(url=None, state=DISABLED))


def checked(report: StatusReport) -> int:
    """The exit code of --check."""
    if report.supervisor.notice:
        return Exit.FAILED
    team, gateway = [one.state for one in report.specialists], report.gateway.state
    if not any(state in UP for state in team or [gateway]):
        return Exit.NOT_RUNNING
    is_well = all(state == "ready" for state in team) and gateway in ("ready", DISABLED)
    return Exit.DONE if is_well else Exit.FAILED


def print_status(report: StatusReport) -> None:
    """The table on standard output; what to do, where there is something, below it on standard error."""
    for line in rendered(report):
        click.echo(line)
    for line in advice(report):
        click.echo(line, err=True)


def rendered(report: StatusReport) -> list[str]:
    """The table's lines, and below it the gateway's."""
    return [*(_table(report.specialists) if report.specialists else []), *_gateway(report.gateway)]


def _table(specialists: Sequence[SpecialistStatus]) -> list[str]:
    rows = [_row(one) for one in specialists]
    lines = look.table(HEADER, rows, look.width())
    if not look.wants_colour(sys.stdout):
        return lines
    start = max(len(row[0]) for row in [HEADER, *rows]) + 2
    painted = [click.style(lines[0], bold=True)]
    for line, one in zip(lines[1:], specialists, strict=True):
        end = start + len(one.state)
        state = click.style(line[start:end], fg=look.STATE_COLOURS.get(one.state))
        painted.append(line[:start] + state + line[end:])
    return painted


def _gateway(one: GatewayStatus) -> list[str]:
    """`gateway  ready  http://127.0.0.1:8003  pid 4711  up 12s`; nothing where there is to be none."""
    if one.state == DISABLED:
        return []
    parts = [one.name, look.paint(one.state, look.STATE_COLOURS.get(one.state), sys.stdout), one.url or "-"]
    parts += [f"pid {one.pid}", f"up {look.duration(one.uptime)}"] if one.pid else []
    parts += [f"{one.restarts} restarts"] if one.restarts else []
    parts += [trouble] if (trouble := _trouble(one)) != "-" else []
    return ["  ".join(parts)]


def advice(report: StatusReport) -> list[str]:
    """What a person should know next: the model server, whoever is not well, a supervisor that is not there."""
    lines = []
    if report.supervisor.state == "down":
        is_ours = report.supervisor.restarter == "chorus"
        remedy = "chorus up" if is_ours else "start its unit, chorus.service; the specialists are systemd's"
        lines.append(f"the supervisor is not running; this is what it wrote last  do: {remedy}")
    elif place := _changed(report.supervisor.configuration):
        lines.append(f"the configuration has changed since the supervisor read it: {place}  do: chorus reload")
    elif report.supervisor.restarter == "systemd":
        lines.append("restarter: systemd (specialist@NAME.service); the supervisor observes and hands on what is asked")
    if report.supervisor.notice:
        lines.append(f"{report.supervisor.notice}  do: {report.supervisor.remedy}")
    backend = report.backend
    running = any(one.state in UP for one in report.specialists)
    if running and backend.kind == "builtin":
        lines.append(
            "answers come from the built-in echo, not from a language model  "
            "do: start Ollama (ollama serve) and ollama pull llama3.2; the team moves over by itself"
        )
    elif running and backend.error:
        lines.append(f"model server: {backend.error}")
    troubled = [one for one in report.everybody if one.last_error and one.state not in UP]
    lines += [
        f"{one.name}: {one.last_error}{_due(one)}" + (f"  do: {one.remedy}" if one.remedy else "") for one in troubled
    ]
    lines += [f"{one.name}: {one.notice}" for one in report.everybody if one.notice]
    return lines


def _changed(configuration: Configured | None) -> str | None:
    """A file of the configuration that is not as it was when the supervisor read it, with when that was."""
    for place, before in (configuration.files if configuration else {}).items():
        if configuration and changed_at(Path(place)) != before:
            return f"{place} (read {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(configuration.at))})"
    return None


def _due(one: KeptStatus) -> str:
    delay = (one.next_due or 0.0) - time.time()
    return f"; next try in {delay:.0f} s" if delay > 0 else ""


def _trouble(one: KeptStatus) -> str:
    """What is wrong, or what the process before this one ended of."""
    failed = one.last_exit is not None and one.restarts > 0 and one.last_exit.cause != AS_ASKED
    exit_ = f"last exit: {one.last_exit.cause}" if failed and one.last_exit and one.state in UP else ""
    if one.recycled and (one.started_because or "").startswith("recycled"):
        exit_ = one.started_because or ""
    return look.harmless((one.last_error or exit_ or "-").splitlines()[0])


def _row(one: SpecialistStatus) -> Sequence[str]:
    return (
        one.name,
        one.state,
        str(one.port),
        str(one.pid) if one.pid else "-",
        look.duration(one.uptime),
        str(one.restarts),
        look.harmless(one.model) if one.model else "-",
        f"{one.tokens_per_second:.1f}" if one.tokens_per_second else "-",
        look.size(one.rss_bytes),
        _trouble(one),
    )


def _report(loaded: Loaded, names: list[str] | None) -> tuple[StatusReport | None, bool]:
    """The state of the team, and whether its supervisor said it itself."""
    from supervisor.cli.reach import glance, last_report

    try:
        return glance(loaded, names), True
    except Failure:
        last = last_report(loaded)
    if last is None:
        return None, False
    everybody = [one.name for one in last.specialists]
    return of_some(last, set(spelling.chosen(names, everybody, [GATEWAY]))), False


def of_some(report: StatusReport, names: set[str]) -> StatusReport:
    """The report without the other specialists."""
    return msgspec.structs.replace(report, specialists=[one for one in report.specialists if one.name in names])
