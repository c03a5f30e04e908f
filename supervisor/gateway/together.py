"""Several asked at once for somebody who can take only one answer: what they say becomes one text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from protocol.errors import from_wire
from protocol.messages import Usage
from supervisor.gateway.floor import Floor
from supervisor.team.chat import Member, TeamQuestion, ask_team
from supervisor.team.events import Entry, Finished, Token


async def said_together(members: list[Member], question: TeamQuestion, say: Callable[[str, str], None]) -> Finished:
    """Asks all of these; `say` is told each piece of the text, and whose it is. Returns how they ended.

    Raises what the first one failed with where nobody gave a whole answer.
    """
    floor, finished = Floor(say), None
    async with ask_team(members, question) as events:
        async for event in events:
            match event:
                case Token() if event.content:
                    floor.hear(event.name, event.content)
                case Entry():
                    floor.end(event)
                case Finished():
                    finished = event
    assert finished is not None, "a team chat ends with its end"
    if not finished.responses:
        missing = [*finished.failed, *finished.timed_out]
        first = missing[0]
        assert first.error is not None, "one that is not whole has an error"
        sentence = f"nobody of {len(missing)} answered: {first.name}: {first.error.error}"
        raise from_wire(first.error.code, sentence, first.content)
    floor.close()
    return finished


def usage_of(finished: Finished) -> Usage | None:
    """The tokens of all of them; None where one was not counted, as those that failed are not."""
    counts = [entry.usage for entry in finished.responses if entry.usage is not None]
    if len(counts) < len(finished.responses) or finished.failed or finished.timed_out:
        return None
    return Usage(
        sum(one.prompt_tokens for one in counts),
        sum(one.completion_tokens for one in counts),
        sum(one.total_tokens for one in counts),
    )


def reason_of(finished: Finished) -> Literal["stop", "length"]:
    """Whether one of them ran into its limit of tokens."""
    return "length" if any(entry.done_reason == "length" for entry in finished.responses) else "stop"
