"""Many answers made one text: one at a time, and nothing lost."""

from __future__ import annotations

import itertools

import pytest

from supervisor.gateway.floor import Floor
from supervisor.team.events import Entry, Trouble


def entry(name: str, content: str, error: Trouble | None = None) -> Entry:
    return Entry(
        name=name,
        specialist_id=f"{name}-ai",
        socket_id=f"{name}-ci",
        content=content,
        timestamp=0.0,
        elapsed=0.0,
        error=error,
    )


def text_of(*happened: tuple[str, str] | Entry) -> str:
    said: list[str] = []
    floor = Floor(lambda _, text: said.append(text))
    for one in happened:
        if isinstance(one, Entry):
            floor.end(one)
        else:
            floor.hear(*one)
    floor.close()
    return "".join(said)


def test_whoever_speaks_first_is_passed_on_as_it_speaks() -> None:
    said: list[str] = []
    floor = Floor(lambda _, text: said.append(text))
    floor.hear("apollo", "Hel")
    floor.hear("metis", "Me")
    assert said == ["## apollo\n\n", "Hel"]


def test_those_who_have_ended_come_before_those_who_still_speak() -> None:
    text = text_of(
        ("apollo", "a"),
        ("metis", "m"),
        ("numa", "n"),
        ("ergon", "e"),
        entry("ergon", "e"),
        entry("numa", "n"),
        entry("apollo", "a"),
        ("metis", "!"),
        entry("metis", "m!"),
    )
    assert text == "## apollo\n\na\n\n## ergon\n\ne\n\n## numa\n\nn\n\n## metis\n\nm!\n\n"


def test_one_that_does_not_stream_is_said_when_it_ends() -> None:
    assert text_of(("apollo", "a"), entry("metis", "m"), entry("apollo", "a")) == "## apollo\n\na\n\n## metis\n\nm\n\n"


def test_whose_answer_is_missing_or_not_whole_is_said_at_the_end() -> None:
    text = text_of(
        ("apollo", "a"),
        entry("apollo", "a", Trouble("stalled", "silent for 10 s")),
        entry("metis", "", Trouble("model_error", "it broke")),
    )
    assert text == ("## apollo\n\na\n\n## Not answered\n\n- apollo was cut short: silent for 10 s\n- metis: it broke\n")


@pytest.mark.parametrize("order", sorted(set(itertools.permutations("aabbcc"))))
def test_in_whatever_order_they_speak_everybody_has_one_whole_section(order: tuple[str, ...]) -> None:
    happened: list[tuple[str, str] | Entry] = []
    for at, name in enumerate(order):
        is_last = name not in order[at + 1 :]
        happened.append((name, name.upper()))
        if is_last:
            happened.append(entry(name, name.upper() * 2))
    sections = text_of(*happened).split("\n\n")
    assert sorted(sections) == ["", "## a", "## b", "## c", "AA", "BB", "CC"]
    assert all(sections[at + 1] == sections[at][3:].upper() * 2 for at in (0, 2, 4))


def test_every_piece_is_told_with_whose_section_it_is_in() -> None:
    told: list[tuple[str, str]] = []
    floor = Floor(lambda name, text: told.append((name, text)))
    floor.hear("apollo", "a")
    floor.hear("metis", "m")
    floor.end(entry("metis", "m"))
    floor.end(entry("apollo", "a", Trouble("stalled", "silent")))
    floor.close()
    assert [name for name, _ in told] == ["apollo", "apollo", "apollo", "metis", "", ""]
