"""The few commands that a person with nc may type instead of a question, and their answers as plain text."""

from __future__ import annotations

import re
import time

from daemon.specialist import Specialist
from protocol.messages import History, Reset

_COMMAND = re.compile(r"/[a-z]+( |$)")

HELP = """\
Write a question and press Enter; a paste is one question. A line that is a JSON object is a request of the wire protocol.
/help     this list
/info     who this is, which model answers
/health   how it is
/history  what was said on this connection
/reset    forget what was said on this connection
/quit     close the connection"""


def is_command(text: str) -> bool:
    """Whether a message of one line is a command."""
    return "\n" not in text and _COMMAND.match(text) is not None


async def run_command(text: str, specialist: Specialist, session_id: str) -> str | None:
    """The answer to a command as text without a final newline; None for /quit."""
    match text.split(maxsplit=1)[0]:
        case "/help":
            return HELP
        case "/info":
            return _info(specialist)
        case "/health":
            return _health(specialist)
        case "/history":
            return await _history(specialist, session_id)
        case "/reset":
            removed = (await specialist.reset(Reset(session_id=session_id))).removed
            return f"forgot {removed} turns"
        case "/quit":
            return None
        case unknown:
            return f"error: there is no {unknown}; the commands are:\n{HELP}"


def _info(specialist: Specialist) -> str:
    info = specialist.info()
    lines = [
        f"{info.component}: {info.description}",
        f"model: {info.model_name} ({info.model_provider})",
        f"capabilities: {', '.join(info.capabilities)}",
    ]
    if info.note:
        lines.append(f"note: {info.note}")
    return "\n".join(lines)


def _health(specialist: Specialist) -> str:
    health = specialist.health()
    backend = health.backend
    lines = [
        f"{health.status}, pid {health.pid}, up {health.uptime:.0f} s",
        f"model server: {backend.kind} {backend.state}" + (f", {backend.error}" if backend.error else ""),
        f"clients {health.clients}, answering {health.in_flight}, waiting {health.queued}",
    ]
    return "\n".join(lines)


async def _history(specialist: Specialist, session_id: str) -> str:
    stored = await specialist.history(History(session_id=session_id, limit=20))
    if not stored.conversations:
        return "nothing was said on this connection yet"

    def line(role: str, content: str, at: float) -> str:
        who = "you" if role == "user" else specialist.config.name
        return f"{time.strftime('%H:%M:%S', time.localtime(at))} {who}: {' '.join(content.split())[:200]}"

    return "\n".join(line(turn.role, turn.content, turn.timestamp) for turn in stored.conversations)
