"""The completion scripts as text. Pure: places and names in, a script out.

All three find the command by walking over the words before the cursor, skipping options and their values, and then offer
what may stand there. A place is written as its path: "" for chorus itself, "/models/pull" for a command in a group.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from supervisor.cli.shells import BASH, FISH, NAMES, REGISTRY, WALK, ZSH
from supervisor.cli.words import Option, Place

NOTHING = ":"


def script(shell: str, places: list[Place], roster: Iterable[str]) -> str:
    """The script for bash, zsh or fish."""
    names = " ".join(roster)
    if shell == "fish":
        return FISH.format(
            roster=names,
            valued=" ".join(_quoted(_valued(places))),
            steps=" ".join(_quoted(_steps(places))),
            lines="\n".join(_fish_lines(places)),
        )
    offer = _zsh_offer if shell == "zsh" else _bash_offer
    walk = WALK.format(valued=" | ".join(_quoted(_valued(places))), steps=" | ".join(_quoted(_steps(places))))
    return {"bash": BASH, "zsh": ZSH}[shell].format(
        names=NAMES.format(registry=REGISTRY, roster=shlex.quote(names)),
        walk=walk.rstrip(),
        values="\n".join(_values(places, shell)),
        options="\n".join(f"      {_place(one)}) {offer(_spelled(one))} ;;" for one in places),
        words="\n".join(
            f"    {_place(one)}) {action} ;;" for one in places if (action := _words(one, shell)) != NOTHING
        ),
    )


def _valued(places: Iterable[Place]) -> Iterator[str]:
    for place in places:
        for option in place.options:
            if option.takes:
                yield from (f"{_path(place)} {spelling}" for spelling in option.spellings)


def _steps(places: Iterable[Place]) -> Iterator[str]:
    yield from (f"{_path(place)} {command}" for place in places for command in place.commands)


def _values(places: list[Place], shell: str) -> Iterator[str]:
    offer = _zsh_offer if shell == "zsh" else _bash_offer
    files = "_files" if shell == "zsh" else 'COMPREPLY=($(compgen -f -- "$cur"))'
    for place in places:
        for option in place.options:
            if option.takes == "file" or option.choices:
                patterns = " | ".join(_quoted(f"{_path(place)} {spelling}" for spelling in option.spellings))
                action = files if option.takes == "file" else offer([(one, "") for one in option.choices])
                yield f"    {patterns}) {action}; return 0 ;;"
    yield f"    {' | '.join(_quoted(_valued(places)))}) return 0 ;;"  # anything: nothing can be offered


def _words(place: Place, shell: str) -> str:
    """What may stand there that is no option."""
    offer = _zsh_offer if shell == "zsh" else _bash_offer
    if place.commands:
        return offer(list(place.commands.items()))
    if place.arguments == "names":
        more = " ".join(place.choices)
        compute = f'_chorus_names; REPLY="$REPLY {more}"' if more else "_chorus_names"
        if shell == "zsh":
            return f"{compute}; compadd -- ${{=REPLY}}"
        return f'{compute}; COMPREPLY=($(compgen -W "$REPLY" -- "$cur"))'
    if place.arguments == "files":
        return "_files" if shell == "zsh" else 'COMPREPLY=($(compgen -f -- "$cur"))'
    return offer([(choice, "") for choice in place.choices])


def _spelled(place: Place) -> list[tuple[str, str]]:
    return [(spelling, option.help) for option in place.options for spelling in option.spellings if len(spelling) > 2]


def _bash_offer(words: list[tuple[str, str]]) -> str:
    if not words:
        return NOTHING
    return f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(word for word, _ in words))} -- "$cur"))'


def _zsh_offer(words: list[tuple[str, str]]) -> str:
    if not words:
        return NOTHING
    described = " ".join(shlex.quote(f"{word}:{help_}" if help_ else word) for word, help_ in words)
    return f"offered=({described}); _describe chorus offered"


def _fish_lines(places: Iterable[Place]) -> Iterator[str]:
    for place in places:
        at = f"complete -c chorus -n '__chorus_at \"{_path(place)}\"'"
        for name, help_ in place.commands.items():
            yield f"{at} -a {name} -d {_fish(help_)}"
        if place.arguments == "names":
            yield f"{at} -a '(__chorus_names)'"
        if place.choices:
            yield f"{at} -a {_fish(' '.join(place.choices))}"
        for option in place.options:
            yield f"{at} {_fish_option(option)}"


def _fish_option(option: Option) -> str:
    parts = [f"-l {one[2:]}" if one.startswith("--") else f"-s {one[1:]}" for one in option.spellings]
    if option.takes:
        parts.append("-r -F" if option.takes == "file" else "-x")
    if option.choices:
        parts.append(f"-a {_fish(' '.join(option.choices))}")
    return " ".join([*parts, f"-d {_fish(option.help)}"])


def _fish(text: str) -> str:
    """Quoted for fish, which knows two escapes between single quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _quoted(texts: Iterable[str]) -> list[str]:
    return [f"'{text}'" for text in texts] or ["''"]


def _path(place: Place) -> str:
    return "".join(f"/{part}" for part in place.path)


def _place(place: Place) -> str:
    return f"'{_path(place)}'"
