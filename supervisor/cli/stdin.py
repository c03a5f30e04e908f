"""Standard input that may be part of a question: read where somebody sent something, never waited for in vain.

A parent often leaves a pipe open that nobody writes to (cron, CI, editors). `-` reads always. Otherwise a file is read, and
a pipe as soon as there is something in it, or its end; one that stays silent is given up when there is a question without it.
"""

from __future__ import annotations

import os
import select
import stat
import sys

NOTICE_AFTER = 1.0  # seconds of waiting until we say what for
GIVE_UP_AFTER = 3.0  # seconds an open, silent pipe is waited for when there is text besides
READ_SIZE = 65536


def read_stdin(*, always: bool, have_text: bool) -> str:
    """What standard input says, without the newlines at its end; empty where there is nothing to read."""
    try:
        kind = os.fstat(0).st_mode
    except OSError:
        return ""  # closed
    if not always and os.isatty(0):
        return ""
    if not always and not stat.S_ISREG(kind) and not _becomes_readable(have_text=have_text):
        return ""
    return _decoded(_everything()).rstrip("\r\n")


def in_front(said: str, text: str) -> str:
    """The question: standard input, a blank line, the text."""
    return "\n\n".join(part for part in (said, text) if part.strip())


def clean(text: str) -> str:
    """Arguments of the command line as text that can be sent: bytes that are no UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _becomes_readable(*, have_text: bool) -> bool:
    """Waits for the first byte or the end; False when nothing came in time and the question can do without."""
    waiting = select.poll()
    waiting.register(0, select.POLLIN)
    if waiting.poll(NOTICE_AFTER * 1000):
        return True
    hint = " (--no-stdin to skip)" if have_text else " (Ctrl-D or Ctrl-C to end)"
    print(f"reading stdin...{hint}", file=sys.stderr, flush=True)
    if not have_text:
        waiting.poll()
        return True
    if waiting.poll((GIVE_UP_AFTER - NOTICE_AFTER) * 1000):
        return True
    print("nothing came on stdin: going on without it", file=sys.stderr, flush=True)
    return False


def _everything() -> bytes:
    parts = []
    while part := os.read(0, READ_SIZE):
        parts.append(part)
    return b"".join(parts)


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        print(f"stdin is not UTF-8 at byte {error.start}: what cannot be read becomes \ufffd", file=sys.stderr)
        return data.decode(errors="replace")
