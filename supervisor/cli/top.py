"""`chorus top`: the team at work, live on a terminal; elsewhere one measured sample."""

from __future__ import annotations

import sys

import click

from supervisor.cli.context import invocation, surroundings_of


@click.command("top")
@click.option("--json", "as_json", is_flag=True, help="One sample as one JSON object.")
@click.pass_context
def top_command(ctx: click.Context, as_json: bool) -> int:
    """Watch the team at work: who is busy, how fast, at what cost. Letters sort, arrows scroll, q leaves."""
    import anyio

    from supervisor.cli.toplive import Top, sample

    loaded = surroundings_of(ctx)
    if as_json or not sys.stdout.isatty() or invocation(ctx).environ.get("TERM") == "dumb":
        return anyio.run(sample, loaded, as_json)
    return anyio.run(Top(loaded).run)
