"""A pull, shown while it goes on: a bar for each layer on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

import click
import msgspec

from supervisor.cli import look
from supervisor.config import Loaded

if TYPE_CHECKING:
    from supervisor.checkup.model_server import PullEvent

    Events = AsyncGenerator[PullEvent, None]


async def pull_and_show(loaded: Loaded, model: str, as_json: bool) -> None:
    """Returns when the model is there. Raises ModelServerError."""
    from supervisor.checkup.model_server import pull

    async with aclosing(pull(loaded, model)) as events:
        if as_json:
            async for event in events:
                click.echo(msgspec.json.encode(_told(event)).decode())
                sys.stdout.flush()
        elif sys.stderr.isatty() and look.wants_colour(sys.stderr):
            await _bars(events)
        else:
            await _lines(events)
    if not as_json:
        click.echo(f"{model} is there", err=True)


async def _lines(events: Events) -> None:
    said = None
    async for event in events:
        if event.status != said:
            said = event.status
            size = f" ({look.size(event.total)})" if event.total else ""
            click.echo(look.harmless(f"{event.status}{size}"), err=True)


async def _bars(events: Events) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, int] = {}
        said = None
        async for event in events:
            if event.digest is None or event.total is None:
                if event.status != said:
                    said = event.status
                    console.print(look.harmless(event.status), markup=False, highlight=False)
                continue
            if event.digest not in tasks:
                name = look.harmless(event.status)
                tasks[event.digest] = progress.add_task(name, total=event.total)
            # Absent at 0: Ollama leaves out what is nothing.
            progress.update(tasks[event.digest], completed=event.completed or 0, total=event.total)  # type: ignore[arg-type]


def _told(event: PullEvent) -> dict[str, object]:
    return {name: value for name, value in msgspec.structs.asdict(event).items() if value is not None}
