"""Regular expressions that are searched in linear time: what a routing rule looks for in a message.

Python's own `re` backtracks: one rule such as `(a+)+$` and one message made for it, and every stream of the gateway stands
still for minutes. Here a pattern becomes the states of an automaton (Thompson 1968), all of which are followed at once; sets
of states that were met are remembered, so that a usual search is one look into a dictionary for each character.

What there is: text, `.`, `[a-z]`, `[^…]`, `\\d \\w \\s \\b` and their opposites, `^ $`, `( )`, `|`, `* + ? {2} {2,} {2,5}`.
Letters match whatever their case, `^` and `$` only at the ends of the whole text. What would need a memory of what was
matched, or a look ahead, is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

LONGEST = 200  # characters of a pattern
MOST_STEPS = 400  # of the automaton: repetitions with counts multiply
MOST_STATES = 1000  # remembered sets; each character of a message adds one at most
DEEPEST = 20  # groups within groups

Test = Callable[[str], bool]


class BadPattern(ValueError):
    """Not a pattern; says what is wrong with it, and where."""


class _Char(NamedTuple):
    """Takes one character, and goes on with the next step."""

    test: Test


class _Split(NamedTuple):
    """Goes on in two places, counted from here."""

    one: int
    other: int


class _Assert(NamedTuple):
    """Goes on where it holds between two characters: of ^ $ b B."""

    what: str


_Step = _Char | _Split | _Assert
_START, _WORD, _OTHER, _END = "start", "word", "other", "end"  # what stands before or behind a place


class _State:
    """A set of steps that a search has come to, and what stands before them."""

    __slots__ = ("after", "before", "steps")

    def __init__(self, steps: frozenset[int], before: str) -> None:
        self.steps = steps
        self.before = before
        self.after: dict[str, _State | None] = {}  # by character; None once it was found


class Pattern:
    """One pattern. Raises BadPattern."""

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise BadPattern(f"a pattern has at most {LONGEST} characters, and this one {len(text)}")
        self.text = text
        self._program = _Parser(text).program()
        self._forget()

    def found_in(self, text: str, *, is_whole: bool = True) -> bool:
        """Whether it matches anywhere in the text; `$` only where that is the whole of it."""
        state = self._first
        for char in text.lower():
            after = state.after[char] if char in state.after else self._follow(state, char)
            if after is None:
                return True
            state = after
        return is_whole and self._closure(state, _END) is None

    def _follow(self, state: _State, char: str) -> _State | None:
        kind = _kind(char)
        open_steps = self._closure(state, kind)
        after = None
        if open_steps is not None:
            taken = {at + 1 for at in open_steps if isinstance(step := self._program[at], _Char) and step.test(char)}
            key = (frozenset(taken | {0}), kind)  # it may also begin behind this character
            if len(self._states) >= MOST_STATES:
                self._forget()
            after = self._states.setdefault(key, _State(*key))
        state.after[char] = after
        return after

    def _closure(self, state: _State, behind: str) -> set[int] | None:
        """Every step that is reached from a state without taking a character; None where that is the end: found."""
        seen: set[int] = set()
        waiting = list(state.steps)
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            if at == len(self._program):
                return None
            match self._program[at]:
                case _Split(one, other):
                    waiting += (at + one, at + other)
                case _Assert(what) if _holds(what, state.before, behind):
                    waiting.append(at + 1)
        return seen

    def _forget(self) -> None:
        self._first = _State(frozenset({0}), _START)
        self._states: dict[tuple[frozenset[int], str], _State] = {}


def _kind(char: str) -> str:
    return _WORD if _is_word(char) else _OTHER


def _holds(what: str, before: str, behind: str) -> bool:
    match what:
        case "^":
            return before == _START
        case "$":
            return behind == _END
    at_edge = (before == _WORD) != (behind == _WORD)
    return at_edge if what == "b" else not at_edge


# -- reading a pattern -------------------------------------------------------------------------------------------------


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def _either_case(test: Test) -> Test:
    """Messages are searched in small letters, and a range may be of capital ones."""
    return lambda char: test(char) or (char.upper() != char and any(map(test, char.upper())))


_CLASSES: dict[str, Test] = {
    "d": str.isdecimal,
    "w": _is_word,
    "s": str.isspace,
    "D": lambda char: not char.isdecimal(),
    "W": lambda char: not _is_word(char),
    "S": lambda char: not char.isspace(),
}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}
_REPEATS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


class _Parser:
    """Reads a pattern from left to right; `at` is the place of the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def program(self) -> list[_Step]:
        steps = self._either()
        if self.at < len(self.text):
            raise self._wrong("a ) without its (")
        return steps

    def _either(self) -> list[_Step]:
        steps = self._sequence()
        while self._takes("|"):
            other = self._sequence()
            # split to both; the first one jumps over the second
            steps = [_Split(1, len(steps) + 2), *steps, _Split(len(other) + 1, len(other) + 1), *other]
        return self._bounded(steps)

    def _sequence(self) -> list[_Step]:
        steps: list[_Step] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            steps += self._repeated(self._one())
            self._bounded(steps)
        return steps

    def _one(self) -> list[_Step]:
        char = self._next()
        match char:
            case "(":
                return self._group()
            case "[":
                return [_Char(self._set())]
            case "." | "^" | "$":
                return [_Char(lambda char: char != "\n")] if char == "." else [_Assert(char)]
            case "\\":
                return self._escaped()
            case "*" | "+" | "?":
                self.at -= 1
                raise self._wrong(f"a {char} with nothing before it to repeat")
        return _literal(char)

    def _group(self) -> list[_Step]:
        opened = self.at - 1
        if self._takes("?") and not self._takes(":"):
            raise self._wrong("(?…) of this kind is not known here: only (?:…)")
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._wrong(f"more than {DEEPEST} groups within each other")
        steps = self._either()
        self.depth -= 1
        if not self._takes(")"):
            self.at = opened
            raise self._wrong("a ( without its )")
        return steps

    def _escaped(self) -> list[_Step]:
        char = self._next("an escape that is cut off")
        if char in "bB":
            return [_Assert(char)]
        if char in _CLASSES:
            return [_Char(_CLASSES[char])]
        return _literal(self._plain(char))

    def _plain(self, char: str) -> str:
        """The character that an escape stands for."""
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char.isascii() and char.isalnum():
            self.at -= 1
            raise self._wrong(f"\\{char} is not known here")
        return char

    def _set(self) -> Test:
        opened, tests = self.at - 1, list[Test]()
        is_without = self._takes("^")
        while not tests or not self._takes("]"):
            if self.at >= len(self.text):
                self.at = opened
                raise self._wrong("a [ without its ]")
            tests.append(self._member())
        test = _either_case(lambda char: any(one(char) for one in tests))
        return (lambda char: not test(char)) if is_without else test

    def _member(self) -> Test:
        begin = self._next()
        if begin == "\\":
            char = self._next("an escape that is cut off")
            if char in _CLASSES:
                return _CLASSES[char]
            begin = self._plain(char)
        if self.text[self.at : self.at + 1] != "-" or self.text[self.at + 1 : self.at + 2] in ("", "]"):
            return lambda char: char == begin
        self.at += 1
        end = self._next()
        if end == "\\":
            end = self._plain(self._next("an escape that is cut off"))
        if end < begin:
            raise self._wrong(f"{begin}-{end} is a range from behind")
        return lambda char: begin <= char <= end

    def _repeated(self, steps: list[_Step]) -> list[_Step]:
        repeat = self._repeat()
        if repeat is None:
            return steps
        least, most = repeat
        if len(steps) == 1 and isinstance(steps[0], _Assert):
            raise self._wrong("a place is repeated, and not a character")
        self._takes("?")  # as little as possible: where it ends is no matter here
        if self._repeat() is not None:
            raise self._wrong("a repetition of a repetition: put ( ) around the inner one")
        self._bounded([*steps] * least)
        repeated = [*steps] * least
        if most is None:
            # again and again, or on: the last split goes back to the first
            return [*repeated, _Split(1, len(steps) + 2), *steps, _Split(-len(steps) - 1, -len(steps) - 1)]
        self._bounded([*steps] * (most - least))
        for left in range(most - least, 0, -1):
            repeated += [_Split(1, left * (len(steps) + 1)), *steps]
        return self._bounded(repeated)

    def _repeat(self) -> tuple[int, int | None] | None:
        """How often what stands before is repeated, where that is said here."""
        char = self.text[self.at : self.at + 1]
        if char in _REPEATS:
            self.at += 1
            return _REPEATS[char]
        end = self.text.find("}", self.at)
        if char != "{" or end < 0:
            return None
        least, comma, most = self.text[self.at + 1 : end].partition(",")
        if not all(part.isascii() and part.isdecimal() for part in (least, *([most] if most else []))):
            return None  # then it is text
        if max(len(least), len(most)) > len(str(MOST_STEPS)) or (most and int(most) < int(least)):
            raise self._wrong(f"{{{least}{comma}{most}}} repeats too often, or less than never")
        self.at = end + 1
        return int(least), int(most) if most else None if comma else int(least)

    def _takes(self, char: str) -> bool:
        if self.text[self.at : self.at + 1] != char:
            return False
        self.at += 1
        return True

    def _next(self, otherwise: str = "") -> str:
        if self.at >= len(self.text):
            raise self._wrong(otherwise)
        self.at += 1
        return self.text[self.at - 1]

    def _bounded(self, steps: list[_Step]) -> list[_Step]:
        if len(steps) > MOST_STEPS:
            raise self._wrong(f"it is too large: repetitions multiply, and it may have {MOST_STEPS} steps in all")
        return steps

    def _wrong(self, what: str) -> BadPattern:
        return BadPattern(f"{what}, at character {self.at + 1}")


def _literal(char: str) -> list[_Step]:
    return [_Char(_is(one)) for one in char.lower()]


def _is(wanted: str) -> Test:
    return lambda char: char == wanted
