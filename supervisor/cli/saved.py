"""`--save FILE`: an answer written to a file while it streams. The file has its name only when it is whole, or marked."""

from __future__ import annotations

from pathlib import Path

from supervisor.cli.exits import Exit, Failure


class Saved:
    """The file being written, under `FILE.part`. Whoever opened it calls `finish` or `interrupted`.

    A disk that fails stops the writing, not the answer: only these two raise Failure.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(path.name + ".part")
        self._at_line_start = True
        self._empty = True
        self._error: OSError | None = None
        try:
            self._file = self._part.open("w", encoding="utf-8", errors="replace")
        except OSError as error:
            raise self._failure(error) from None

    def write(self, text: str) -> None:
        if not text or self._error is not None:
            return
        self._empty = False
        self._at_line_start = text.endswith("\n")
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            self._error = error

    def finish(self) -> None:
        """The answer is whole: the file gets its name."""
        if not self._at_line_start:
            self.write("\n")
        try:
            self._file.close()
            if self._error is None:
                self._part.replace(self.path)
        except OSError as error:
            self._error = self._error or error
        if self._error is not None:
            raise self._failure(self._error)

    def interrupted(self, why: str) -> None:
        """The answer is not whole: what came is kept, with a line that says so; nothing is kept of nothing."""
        if self._empty:
            self._file.close()
            self._part.unlink(missing_ok=True)
            return
        if not self._at_line_start:
            self.write("\n")
        self.write(f"[{why}]")
        self.finish()

    def _failure(self, error: OSError) -> Failure:
        return Failure(f"cannot write {self.path}: {(error.strerror or str(error)).lower()}", Exit.FAILED)
