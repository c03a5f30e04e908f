"""Many asked at once, over real sockets: who is told of, under which name, and what a moderator makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
from scripted import EchoBackend, ScriptedBackend
from serving import serving

from daemon.backends import Backend
from protocol.errors import ModelError
from supervisor.team.chat import Member, Moderation, TeamQuestion, ask_team
from supervisor.team.events import AnyEvent, Asked, Consensus, Entry, Finished, Moderating, Token, Trouble
from supervisor.team.moderation import usual_moderator


@asynccontextmanager
async def team(folder: Path, **backends: Backend) -> AsyncGenerator[list[Member]]:
    async with AsyncExitStack() as stack:
        members = []
        for name, backend in backends.items():
            served = await stack.enter_async_context(serving(backend, folder / name, name=name))
            members.append(Member(name, "127.0.0.1", served.port))
        yield members


async def told(members: list[Member], question: TeamQuestion) -> tuple[list[AnyEvent], Finished]:
    with anyio.fail_after(5):
        async with ask_team(members, question) as events:
            said = [event async for event in events]
    assert isinstance(said[-1], Finished)
    return said, said[-1]


async def test_one_known_to_be_absent_is_an_entry_that_failed(tmp_path: Path) -> None:
    absent = Member("metis", "127.0.0.1", 1, trouble=Trouble("unavailable", "it is stopped"))
    async with team(tmp_path, apollo=EchoBackend()) as members:
        said, finished = await told([absent, *members], TeamQuestion(content="hi"))
    assert isinstance(said[0], Asked)
    assert said[0].specialists == ["metis", "apollo"]
    assert [entry.name for entry in finished.responses] == ["apollo"]
    assert [(entry.name, entry.error) for entry in finished.failed] == [("metis", absent.trouble)]


async def test_everybody_is_called_as_the_caller_spelt_it(tmp_path: Path) -> None:
    async with team(tmp_path, apollo=EchoBackend(), metis=EchoBackend()) as (apollo, metis):
        spelt = Member(apollo.name, apollo.host, apollo.port, spelling="Apollo-CI")
        _, finished = await told([spelt, metis], TeamQuestion(content="hi"))
    assert set(finished.responses_by_id) == {"Apollo-CI", "metis-ai"}
    assert {entry.socket_id for entry in finished.responses} == {"apollo-ci", "metis-ci"}


async def test_the_synthesis_is_streamed_and_reads_every_answer(tmp_path: Path) -> None:
    moderator = ScriptedBackend("All ", "agree.")
    async with team(tmp_path, apollo=ScriptedBackend("Yes."), metis=ScriptedBackend("No."), rhetor=moderator) as (
        *members,
        by,
    ):
        question = TeamQuestion(content="Shall we?", moderation=Moderation("synthesis", by))
        said, finished = await told(members, question)
    tokens = [event for event in said if isinstance(event, Token) and event.phase == "synthesis"]
    assert [(token.name, token.content) for token in tokens] == [("rhetor", "All "), ("rhetor", "agree.")]
    assert finished.synthesis == "All agree."
    assert finished.consensus is None
    assert {entry.name for entry in finished.responses} == {"apollo", "metis"}
    [asked] = moderator.questions
    assert all(part in asked for part in ("> apollo:\n> Yes.", "> metis:\n> No.", "Shall we?"))


async def test_a_consensus_is_the_moderators_words_with_its_name(tmp_path: Path) -> None:
    async with team(tmp_path, apollo=ScriptedBackend("Agreement: full")) as [by]:
        _, finished = await told([by], TeamQuestion(content="?", moderation=Moderation("consensus", by)))
    assert finished.consensus == Consensus("Agreement: full", "apollo-ai")
    assert finished.synthesis is None


async def test_a_moderator_that_fails_costs_nobodys_answer(tmp_path: Path) -> None:
    broken = ScriptedBackend("All ", ModelError("it broke"))
    async with team(tmp_path, apollo=ScriptedBackend("Yes."), rhetor=broken) as (apollo, by):
        _, finished = await told([apollo], TeamQuestion(content="?", moderation=Moderation("synthesis", by)))
    assert finished.responses_by_id == {"apollo-ai": "Yes."}
    assert finished.synthesis is None
    assert finished.failed == []
    assert finished.moderation is not None
    assert (finished.moderation.content, finished.moderation.error) == ("All ", Trouble("model_error", "it broke"))


async def test_where_nobody_answered_nobody_is_asked_what_to_make_of_it(tmp_path: Path) -> None:
    moderator = EchoBackend()
    async with team(tmp_path, apollo=ScriptedBackend(ModelError("it broke")), rhetor=moderator) as (apollo, by):
        said, finished = await told([apollo], TeamQuestion(content="?", moderation=Moderation("synthesis", by)))
    assert finished.moderation is None
    assert not any(isinstance(event, Moderating) for event in said)
    assert moderator.prompts == []


async def test_the_deadline_is_the_moderators_too(tmp_path: Path) -> None:
    moderator = ScriptedBackend("All ", asyncio.Event())
    async with team(tmp_path, apollo=ScriptedBackend("Yes."), rhetor=moderator) as (apollo, by):
        question = TeamQuestion(content="?", deadline=0.3, moderation=Moderation("synthesis", by))
        _, finished = await told([apollo], question)
    assert finished.responses_by_id == {"apollo-ai": "Yes."}
    assert finished.moderation is not None
    assert finished.moderation.error is not None
    assert (finished.moderation.error.code, finished.moderation.done_reason) == ("deadline", "cancelled")


async def test_after_the_deadline_no_moderator_is_asked(tmp_path: Path) -> None:
    moderator = EchoBackend()
    silent = ScriptedBackend("Hm", asyncio.Event())
    async with team(tmp_path, apollo=ScriptedBackend("Yes."), metis=silent, rhetor=moderator) as (*members, by):
        question = TeamQuestion(content="?", deadline=0.3, moderation=Moderation("synthesis", by))
        said, finished = await told(members, question)
    [late] = finished.timed_out
    assert (late.name, late.content, late.done_reason) == ("metis", "Hm", "cancelled")
    assert finished.moderation is not None
    assert finished.moderation.error is not None
    assert finished.moderation.error.code == "deadline"
    assert moderator.prompts == []
    assert sum(isinstance(event, Entry) for event in said) == 2


def test_who_moderates_where_nobody_was_named() -> None:
    assert usual_moderator(["apollo", "synthesis"]) == "synthesis"
    assert usual_moderator(["apollo", "metis"]) == "apollo"
