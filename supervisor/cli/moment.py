"""How people write spans of time, and moments."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

_SPAN = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def span(text: str) -> timedelta | None:
    """What `5m`, `1h30m` or `30d` means; None for what is no span. Raises OverflowError for one beyond all calendars."""
    found = _SPAN.fullmatch(text.strip().lower())
    if found is None or not any(found.groups()):
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def since(text: str, now: datetime) -> float:
    """The Unix time that `5m`, `1h30m`, `2026-11-20` or `2026-11-20T10:00` means. Raises ValueError."""
    if (ago := span(text)) is not None:
        return (now - ago).timestamp()
    return datetime.fromisoformat(text.strip()).timestamp()
