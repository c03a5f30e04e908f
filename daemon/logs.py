"""Where a process writes what happened: its own rotated file, the journal, or standard error. One record a line."""

from __future__ import annotations

import logging
import logging.handlers
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

MAX_BYTES = 1_048_576
KEPT_FILES = 3

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class OneLine(logging.Formatter):
    """Time, level and name, then the message; line ends inside a record are written as \\n, so a record is a line."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03d"

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", "\\n")


class Journal(OneLine):
    """What systemd's journal wants on standard error: a priority, and no time, which it has already (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITY.get(record.levelno, 6)}>{super().format(record)}"


def start_logging(name: str, log_dir: Path | None, environ: Mapping[str, str], level: int = logging.INFO) -> None:
    """Sends everything logged in this process to `<log_dir>/<name>.log`, or to standard error without a folder."""
    handler: logging.Handler
    if log_dir is not None:
        log_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        handler = logging.handlers.RotatingFileHandler(
            log_dir / f"{name}.log", maxBytes=MAX_BYTES, backupCount=KEPT_FILES, encoding="utf-8"
        )
        handler.setFormatter(OneLine(f"%(asctime)s %(levelname)s {name}: %(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        journal = _is_journal(environ)
        handler.setFormatter(
            Journal(f"{name}: %(message)s") if journal else OneLine(f"%(asctime)s %(levelname)s {name}: %(message)s")
        )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _is_journal(environ: Mapping[str, str]) -> bool:
    """Whether standard error is the journal: $JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return stat.S_ISSOCK(status.st_mode) and environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
