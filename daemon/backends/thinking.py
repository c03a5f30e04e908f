"""Takes a leading `<think>…</think>` out of the text, wherever the pieces were cut. Pure.

Some models write their reasoning into the answer although they were asked not to think. Only the very start
is looked at: later the same letters are somebody's example.
"""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


class ThinkSplitter:
    """Divides what a model writes into thinking and content.

    `settled` is true once everything that follows is content: then the caller need not ask any more.
    """

    def __init__(self) -> None:
        self.settled = False
        self._inside = False
        self._after = False  # behind the closing tag, where blank lines belong to nobody
        self._held = ""  # may still become a tag

    def split(self, text: str) -> tuple[str, str]:
        """The thinking and the content in this text, without what must be held back until more comes."""
        if self.settled:
            return "", text
        text, self._held = self._held + text, ""
        thinking = ""
        if not self._inside and not self._after:
            start = text.lstrip()
            if not start.startswith(OPEN):
                if OPEN.startswith(start):
                    self._held = text
                    return "", ""
                self.settled = True
                return "", text
            self._inside = True
            text = start[len(OPEN) :]
        if self._inside:
            thinking, closed, rest = text.partition(CLOSE)
            if not closed:
                keep = _tail(thinking)
                self._held = thinking[len(thinking) - keep :]
                return thinking[: len(thinking) - keep], ""
            self._inside, self._after, text = False, True, rest
        text = text.lstrip()
        self.settled = bool(text)
        return thinking, text

    def rest(self) -> tuple[str, str]:
        """What was held back, now that nothing more comes."""
        held, self._held = self._held, ""
        self.settled = True
        return (held, "") if self._inside else ("", held)


def _tail(text: str) -> int:
    """How many characters at the end may be the beginning of the closing tag."""
    return next((size for size in range(len(CLOSE) - 1, 0, -1) if text.endswith(CLOSE[:size])), 0)
