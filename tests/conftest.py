"""What holds for all tests, and fixtures that several modules share."""

from __future__ import annotations

import sniffio
from system_manager import system_manager
from user_manager import user_manager

__all__ = ["system_manager", "user_manager"]

# As anyio.run() does it. A client that the tests talk to us with brings sniffio along, and where that is installed anyio asks
# it which loop is running; in a callback of the loop it knows only what it was told.
sniffio.current_async_library_cvar.set("asyncio")
