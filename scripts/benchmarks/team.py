"""One team of chorus in a temporary home, and the rows of a table about it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.instruments import PYTHON, ROOT, children, free_base

TEAM = 18
OFFSETS = (*range(17), 80)  # of the ports of the default roster
FOREIGN = ("CHORUS_", "OLLAMA_", "XDG_")  # variables of whoever measures, which are not the team's


class Bench:
    """One temporary home with one team in it, and the rows of the table."""

    def __init__(self, offsets: tuple[int, ...] = OFFSETS, **environ: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="chorus-bench-"))
        self.port_base = free_base(offsets)
        self.environ = surroundings(self.home, self.port_base) | environ
        self.rows: list[tuple[str, str, str, str]] = []

    def row(self, what: str, ours: str, bare: str, target: str) -> None:
        self.rows.append((what, ours, bare, target))
        print(f"  {what}: {ours}   bare: {bare}   target: {target}", file=sys.stderr)

    def chorus(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PYTHON, "-m", "supervisor.cli", *args],
            env=self.environ,
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )

    @contextlib.contextmanager
    def team(self, **environ: str) -> Iterator[None]:
        before = dict(self.environ)
        self.environ.update(environ)
        try:
            self.chorus("up")
            yield
        finally:
            self.chorus("down")
            self.environ = before

    def specialists(self) -> list[dict[str, object]]:
        specialists: list[dict[str, object]] = json.loads(self.chorus("status", "--json").stdout)["specialists"]
        return specialists

    def processes(self) -> list[int]:
        """The supervisor, the fork server, the specialists and the one that is forked ahead."""
        supervisor = json.loads(self.chorus("status", "--json").stdout)["supervisor"]["pid"]
        [fork_server] = children(supervisor)
        return [supervisor, fork_server, *children(fork_server)]


def surroundings(home: Path, port_base: int) -> dict[str, str]:
    """The environment of a team of its own; compiled modules may be written, as for an installed program."""
    left_out = ("PYTHONDONTWRITEBYTECODE",)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN) and key not in left_out}
    return kept | {
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "CHORUS_PORT_BASE": str(port_base),
        "CHORUS_BACKEND": "builtin",
        "CHORUS_GATEWAY": "false",  # what is measured here is the specialists
    }
