"""On which line of a TOML text each key stands. tomllib does not say, and without it a mistake is a search.

Only for text that tomllib has already accepted: the grammar is followed loosely, and nothing is validated.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

Key = tuple[str, ...]

_TOKEN = re.compile(
    r'''(?P<text>"""(?:\\.|[^\\])*?"""+|\'\'\'.*?\'\'\'+|"(?:\\.|[^"\\\n])*"|'[^'\n]*')'''
    r"""|(?P<newline>\n)|(?P<skip>\#[^\n]*|[ \t\r]+)|(?P<mark>[\[\]{}=.,])|(?P<bare>[^\s\[\]{}=.,#"']+)""",
    re.DOTALL,
)
_END = ("end", "", 0)


def lines(text: str) -> dict[Key, int]:
    """Every table, key and list item (by its index) of the text, with its line, counted from 1."""
    return _Lines(text).found


def dotted(key: Key) -> str:
    """The key as one would type it: parts that need quotes have them."""
    return ".".join(part if re.fullmatch(r"[\w-]+", part, re.ASCII) else f'"{part}"' for part in key)


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    line = 1
    for match in _TOKEN.finditer(text):
        if match.lastgroup != "skip":
            yield match.lastgroup or "", match.group(), line
        line += match.group().count("\n")


class _Lines:
    """A walk over the tokens; `now` is the one not yet consumed."""

    def __init__(self, text: str) -> None:
        self.found: dict[Key, int] = {}
        self._rest = _tokens(text)
        self._step()
        table: Key = ()
        while self.now is not _END:
            if self._is("["):
                table = self._header()
            elif self.now[0] == "newline":
                self._step()
            else:
                self._pair(table)

    def _step(self) -> None:
        self.now = next(self._rest, _END)

    def _is(self, *marks: str) -> bool:
        return self.now[0] in ("mark", "newline") and self.now[1] in marks

    def _note(self, key: Key, line: int) -> None:
        for length in range(1, len(key) + 1):
            self.found.setdefault(key[:length], line)

    def _header(self) -> Key:
        line, parts = self.now[2], []
        while self.now is not _END and not self._is("\n"):
            if self.now[0] in ("bare", "text"):
                parts.append(self._part())
            self._step()
        self._note(tuple(parts), line)
        return tuple(parts)

    def _part(self) -> str:
        if self.now[0] == "text":
            return str(tomllib.loads(f"part = {self.now[1]}")["part"])
        return self.now[1]

    def _pair(self, table: Key) -> None:
        line, parts = self.now[2], []
        while self.now is not _END and not self._is("="):
            if self.now[0] in ("bare", "text"):
                parts.append(self._part())
            self._step()
        self._step()
        key = (*table, *parts)
        self._note(key, line)
        self._value(key)

    def _value(self, key: Key) -> None:
        if self._is("[", "{"):
            self._inside(key, is_list=self._is("["))
            return
        while self.now is not _END and not self._is("\n", ",", "]", "}"):
            self._step()

    def _inside(self, key: Key, is_list: bool) -> None:
        index = 0
        self._step()
        while self.now is not _END and not self._is("]", "}"):
            if self._is(",", "\n"):
                self._step()
            elif is_list:
                self._note((*key, str(index)), self.now[2])
                self._value((*key, str(index)))
                index += 1
            else:
                self._pair(key)
        self._step()
