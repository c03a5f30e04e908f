"""`chorus doctor`: every check one line, with what to do; to be pasted into a bug report as it is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
import msgspec

from supervisor.cli import look
from supervisor.cli.context import invocation, settings_of
from supervisor.cli.exits import Exit, Failure
from supervisor.config import ConfigError, Loaded

if TYPE_CHECKING:
    from protocol.control import StatusReport
    from supervisor.checkup.check import Check

STATE_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@click.option("--deep", is_flag=True, help="Ask each specialist for one token too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def doctor_command(ctx: click.Context, deep: bool, as_json: bool) -> int:
    """Check everything: ok, warn or fail, the fact, what to do. Exit code 1 when something fails."""
    checks = _checks(ctx, deep)
    failed = sum(check.state == "fail" for check in checks)
    if as_json:
        report = {"version": 1, "ok": failed == 0, "checks": checks}
        click.echo(msgspec.json.encode(report).decode())
    else:
        for check in checks:
            click.echo(line(check))
        warned = sum(check.state == "warn" for check in checks)
        click.echo(f"{len(checks)} checks: {failed} failed, {warned} to look at", err=True)
    return Exit.FAILED if failed else Exit.DONE


def line(check: Check) -> str:
    state = look.paint(f"{check.state:<4}", STATE_COLOURS[check.state], sys.stdout)
    remedy = f"  do: {look.harmless(check.remedy)}" if check.remedy else ""
    return f"{state}  {' '.join(look.harmless(check.fact).split())}{remedy}"


def _checks(ctx: click.Context, deep: bool) -> list[Check]:
    import anyio

    from supervisor.checkup import machine
    from supervisor.checkup.check import fail
    from supervisor.checkup.run import checkup

    try:
        loaded = settings_of(ctx)
    except ConfigError as error:
        mistakes = [fail("config", mistake, "chorus config check") for mistake in error.mistakes]
        return [*machine.versions(), *mistakes]
    report, answered = _report(loaded)

    async def run() -> list[Check]:
        return await checkup(loaded, report, invocation(ctx).environ, answered=answered, deep=deep)

    return anyio.run(run)


def _report(loaded: Loaded) -> tuple[StatusReport | None, bool]:
    """The supervisor's word, or what the last one wrote with its state as it was: `down` only where it ended in order."""
    from supervisor.cli.reach import glance
    from supervisor.fleet.registry import read_journal

    try:
        return glance(loaded), True
    except Failure:
        return read_journal(loaded.dirs.state / "registry.json"), False
