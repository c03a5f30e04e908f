"""A process in the foreground, with no supervisor: its sockets, handed over by a service manager or bound here."""

from __future__ import annotations

import socket
from collections.abc import MutableMapping

from protocol.settings import ChildConfig
from supervisor.cli.exits import Exit, Failure


def listeners_of(config: ChildConfig, environ: MutableMapping[str, str]) -> list[socket.socket]:
    """What it listens on, which the caller closes. Raises Failure where that cannot be had."""
    from daemon import listen
    from supervisor.fleet.owner import describe

    try:
        return listen.inherited(environ, config.places) or listen.bind(config.places)
    except listen.NotOurs as error:
        remedy = f"correct ListenStream= of the socket unit, or {config.setting_of(config.port)}"
        raise Failure(f"cannot start {config.name}: {error}", Exit.FAILED, remedy=remedy) from None
    except listen.CannotBind as error:
        fact, remedy = describe(error.port, config.setting_of(error.port))
        raise Failure(f"cannot start {config.name}: {fact}", Exit.FAILED, remedy=remedy) from None
