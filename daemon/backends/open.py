"""The one place that knows which kinds of backends there are."""

from __future__ import annotations

from daemon.backends import Backend
from protocol.settings import SpecialistConfig


def open_backend(config: SpecialistConfig) -> Backend:
    """The backend that the configuration names. Opens nothing: its run() does. Imports only what it needs."""
    kind = config.backend.kind
    if kind == "builtin":
        from daemon.backends.builtin import Builtin

        return Builtin(config)
    if kind == "openai_compatible":
        from daemon.backends.openai_compatible import OpenAICompatible

        return OpenAICompatible(config)
    if kind == "ollama" or config.url_asked_for:
        from daemon.backends.ollama import Ollama

        return Ollama(config)
    from daemon.backends.auto import Auto

    return Auto(config)
