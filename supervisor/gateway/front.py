"""The page for a browser: three files, as they are."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from aiohttp import web

from supervisor.gateway.operation import Answer, Call

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


@cache
def _text(name: str) -> str:
    return files("supervisor.gateway").joinpath("page", name).read_text("utf-8")


async def page(call: Call[None]) -> Answer:
    """The team at work, and one box to ask it."""
    return _file("index.html")


async def style(call: Call[None]) -> Answer:
    """How the page looks."""
    return _file("page.css")


async def script(call: Call[None]) -> Answer:
    """What the page does."""
    return _file("page.js")


def _file(name: str) -> web.Response:
    kind = TYPES[name.rpartition(".")[2]]
    return web.Response(text=_text(name), content_type=kind, charset="utf-8")
