"""The listening sockets that the fork server holds: those of each name, by the places that they are bound to."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from daemon import listen
from protocol.settings import BACKLOG, Place


class Held:
    """Written by the fork server alone."""

    def __init__(self) -> None:
        self._listeners: dict[str, dict[Place, socket.socket]] = {}

    @property
    def names(self) -> list[str]:
        return list(self._listeners)

    def places(self, name: str) -> set[Place]:
        return set(self._listeners.get(name, ()))

    def of(self, name: str) -> list[socket.socket]:
        """The sockets of one name, which stay held; none where there are none."""
        return list(self._listeners.get(name, {}).values())

    def bind(self, name: str, places: list[Place]) -> list[Place]:
        """Holds these places of a name and no others; returns those that were bound just now. Raises CannotBind."""
        held = self._listeners.get(name, {})
        kept = {place: held[place] for place in places if place in held}
        for listener in kept.values():
            listener.listen(BACKLOG)  # again: whoever had it may have shut it down, or cut its backlog
        try:
            bound = listen.bind([place for place in places if place not in kept])
        except listen.CannotBind as error:
            if not kept or error.errno not in listen.NOT_HERE:
                raise
            bound = []  # as before: a family of addresses that this machine does not have
        new = {listener.getsockname()[:2]: listener for listener in bound}
        self._listeners[name] = held | new
        self.close(name, held.keys() - kept.keys())
        return list(new)

    def take(self, name: str, listeners: dict[Place, socket.socket]) -> None:
        """Holds sockets that are bound already, in the place of those that were there."""
        self.release(name)
        self._listeners[name] = listeners

    def release(self, name: str) -> None:
        self.close(name, list(self._listeners.get(name, ())))

    def release_all_but(self, name: str | None) -> None:
        """In a child, which has no use for the others'."""
        for other in self.names:
            if other != name:
                self.release(other)

    def close(self, name: str, places: Iterable[Place]) -> None:
        """Lets go of some places of a name."""
        for place in places:
            self._listeners[name].pop(place).close()
        if not self._listeners.get(name):
            self._listeners.pop(name, None)
