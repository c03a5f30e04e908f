"""Sessions on disk: order, limits, deletion that leaves no byte behind, and restarts."""

from __future__ import annotations

import sqlite3
import stat
import time
from pathlib import Path

import anyio
import pytest
from scripted import ScriptedBackend
from serving import Json, serving

from daemon.sessions import Said, Sessions
from protocol.errors import ModelError


async def tell(sessions: Sessions, session: str, *texts: str, at: float = 0.0) -> None:
    for number, text in enumerate(texts):
        when = (at or time.time()) + number
        await sessions.add(session, Said(text + "?", when), Said(text + "!", when + 0.5), "m", "stop")


@pytest.fixture
async def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path / "sessions" / "apollo.db", retention_days=1.0)


async def test_turns_come_back_in_order_and_by_session(sessions: Sessions) -> None:
    await tell(sessions, "a", "one", "two")
    await tell(sessions, "b", "three")
    turns = [(turn.role, turn.content) for turn in await sessions.turns("a")]
    await sessions.close()
    assert turns == [("user", "one?"), ("assistant", "one!"), ("user", "two?"), ("assistant", "two!")]


async def test_a_cut_shortens_prompts_and_not_the_history(sessions: Sessions) -> None:
    await tell(sessions, "a", "one", "two", "three")
    await sessions.cut("a", 2)
    kept = [turn.content for turn in await sessions.turns("a")]
    await tell(sessions, "a", "four")
    later = [turn.content for turn in await sessions.turns("a")]
    _, total = await sessions.history("a", 10, None)
    await sessions.close()
    assert (kept, later, total) == (["three?", "three!"], ["three?", "three!", "four?", "four!"], 8)


async def test_nothing_is_left_after_a_cut_to_nothing(sessions: Sessions) -> None:
    await tell(sessions, "a", "one")
    await sessions.cut("a", 0)
    assert await sessions.turns("a") == []
    await sessions.close()


async def test_history_can_be_read_backwards_without_a_gap(sessions: Sessions) -> None:
    """Also where a long answer was asked for first and ended last."""
    now = time.time()
    await sessions.add("b", Said("short?", now + 1), Said("short!", now + 2), "m", "stop")
    await sessions.add("a", Said("long?", now), Said("long!", now + 9), "m", "stop")
    newer, total = await sessions.history(None, 2, None)
    older, _ = await sessions.history(None, 2, newer[0].timestamp)
    await sessions.close()
    assert [turn.content for turn in older + newer] == ["long?", "short?", "short!", "long!"]
    assert total == 4


async def test_what_is_forgotten_leaves_no_byte_behind(sessions: Sessions) -> None:
    await tell(sessions, "a", *(f"secret-{number}" for number in range(50)))
    await tell(sessions, "b", "kept")
    assert await sessions.forget("a") == 100
    left = b"".join(file.read_bytes() for file in sessions.path.parent.iterdir())
    await sessions.close()
    assert b"secret-" not in left
    assert b"kept" in left


async def test_turns_past_their_retention_are_deleted(sessions: Sessions) -> None:
    await tell(sessions, "a", "old", at=time.time() - 2 * 86400)
    await tell(sessions, "a", "new")
    again = Sessions(sessions.path, retention_days=1.0)
    contents = [turn.content for turn in await again.turns("a")]
    await again.close()
    await sessions.close()
    assert contents == ["new?", "new!"]


async def test_two_processes_may_use_the_file_at_once(sessions: Sessions) -> None:
    successor = Sessions(sessions.path, retention_days=1.0)
    async with anyio.create_task_group() as both:
        for number in range(20):
            both.start_soon(tell, sessions, "a", f"x{number}")
            both.start_soon(tell, successor, "a", f"y{number}")
    assert len(await sessions.turns("a")) == 80
    await sessions.close()
    await successor.close()


async def test_only_its_user_can_read_the_file(sessions: Sessions) -> None:
    await tell(sessions, "a", "one")
    modes = {stat.S_IMODE(file.stat().st_mode) for file in [sessions.path.parent, *sessions.path.parent.iterdir()]}
    await sessions.close()
    assert modes == {0o600, 0o700}


# -- over the wire --------------------------------------------------------------------------------------------------------


def chat(content: str, session: str | None = "s") -> Json:
    return {"content": content, "context": {"session_id": session} if session else {}}


async def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    for backend in (first := ScriptedBackend("one!"), second := ScriptedBackend("two!")):
        async with serving(backend, tmp_path) as served:
            client = await served.connect()
            with anyio.fail_after(5):
                reply = await client.ask(chat("Why?"))
    assert reply["context"]["session_id"] == "s"
    assert [len(first.prompts[0].turns), *(turn.content for turn in second.prompts[0].turns)] == [
        1,
        "Why?",
        "one!",
        "Why?",
    ]


async def test_a_question_without_a_session_is_given_one(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            first = (await client.ask(chat("a", None)))["context"]["session_id"]
            await client.ask(chat("b", None))
            await client.ask(chat("c", first))
    assert [len(prompt.turns) for prompt in backend.prompts] == [1, 1, 3]


async def test_the_history_a_caller_sends_counts_in_place_of_ours(tmp_path: Path) -> None:
    backend = ScriptedBackend("x")
    async with serving(backend, tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            await client.ask(chat("a"))
            history = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}]
            await client.ask({**chat("b"), "history": history})
    assert [turn.content for turn in backend.prompts[1].turns] == ["u", "v", "b"]


async def test_history_is_answered_newest_last_with_its_total(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            for number in range(6):
                await client.ask(chat(str(number), f"s{number % 2}"))
            everything = await client.ask({"type": "history", "request_id": "h"})
            mine = await client.ask({"type": "history", "session_id": "s1", "limit": 3})
            before = await client.ask({"type": "history", "before": everything["conversations"][0]["timestamp"]})
    assert (everything["type"], everything["request_id"], everything["total"]) == ("history_response", "h", 12)
    assert len(everything["conversations"]) == 10
    assert set(everything["conversations"][0]) >= {"session_id", "role", "content", "timestamp"}
    assert [turn["content"] for turn in mine["conversations"]] == ["x", "5", "x"]
    assert mine["total"] == 6
    assert [turn["content"] for turn in before["conversations"]] == ["0", "x"]


async def test_reset_forgets_that_session_only(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            await client.ask(chat("a", "s1"))
            await client.ask(chat("b", "s2"))
            reply = await client.ask({"type": "reset", "session_id": "s1", "request_id": 1})
            refused = await client.ask({"type": "reset"})
            left = await client.ask({"type": "history"})
    assert reply == {"type": "reset_response", "request_id": 1, "session_id": "s1", "removed": 2}
    assert refused["code"] == "bad_request"
    assert [turn["session_id"] for turn in left["conversations"]] == ["s2", "s2"]


async def test_what_had_arrived_before_a_failure_is_kept(tmp_path: Path) -> None:
    async with serving(ScriptedBackend("Hel", ModelError("broke: ask again")), tmp_path) as served:
        client = await served.connect()
        with anyio.fail_after(5):
            await client.ask(chat("a"))
            stored = await client.ask({"type": "history"})
    assert [turn["content"] for turn in stored["conversations"]] == ["a", "Hel"]


async def test_a_disk_that_fails_is_a_notice_and_not_a_lost_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(ScriptedBackend("x"), tmp_path) as served:

        async def full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(served.specialist.sessions, "add", full)
        client = await served.connect()
        with anyio.fail_after(5):
            reply = await client.ask(chat("a"))
    assert (reply["content"], reply["notices"]) == ("x", ["this turn could not be stored: database or disk is full"])
    assert "disk is full" in caplog.text
