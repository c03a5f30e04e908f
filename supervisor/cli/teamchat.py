"""One team chat at the terminal: events into a view and a file, Ctrl-C, what a moderator makes of it, and the last line."""

from __future__ import annotations

import sys
import time

import anyio

from protocol import names
from supervisor.cli import look
from supervisor.cli.answer import BUILTIN, BUILTIN_NOTICE
from supervisor.cli.exits import Exit
from supervisor.cli.saved import Saved
from supervisor.cli.stream import Outlet, Spinner, tell, unwritable, watch_interrupts
from supervisor.cli.views import Blocks, Json, Lines, View, as_line, block, summary
from supervisor.cli.whom import Colleagues
from supervisor.team.chat import Member, TeamQuestion, ask_team
from supervisor.team.events import AnyEvent, Asked, Entry, Finished, Moderating, Token, Trouble

TICK = 0.1  # seconds: how often a view is told that time passed


class TeamChat:
    """One question to many, and then to the moderator that the question names."""

    def __init__(
        self,
        everybody: Colleagues,
        members: list[Member],
        question: TeamQuestion,
        *,
        view: str,
        over_ssh: bool,
        saved: Saved | None,
        saved_as_json: bool,
    ) -> None:
        self.everybody = everybody
        self.question = question
        self.signal: int | None = None
        self.quit = False
        self._members = members
        self._view_name = view
        self._over_ssh = over_ssh
        self._saved = saved
        self._saved_as_json = saved_as_json
        self._outlet = Outlet(sys.stdout)
        self._view: View = Json(self._outlet)
        self._spinner = Spinner(wanted=view in ("blocks", "json"))
        self._asking = anyio.CancelScope()
        self._began = anyio.current_time()
        self._request_id = ""
        self._pieces: dict[str, list[str]] = {}
        self._entries: list[Entry] = []
        self._is_transcribed = False
        self._moderating: Moderating | None = None
        self._moderated: list[str] = []  # the pieces of what the moderator said
        self._finished: Finished | None = None

    async def run(self) -> int:
        """Asks, shows, and returns the exit code."""
        try:
            finished = await self._round()
        except BaseException:  # a cancellation and a broken pipe too: what was saved must not look whole
            if self._saved is not None:
                self._saved.interrupted("Interrupted")
            raise
        self._last(finished)
        if self.signal is not None:
            return 128 + self.signal
        if not finished.responses:
            return Exit.FAILED
        moderation = finished.moderation
        is_partial = finished.failed or finished.timed_out or (moderation is not None and moderation.error is not None)
        return Exit.PARTIAL if is_partial else Exit.DONE

    # -- the round ------------------------------------------------------------------------------------------------------

    async def _round(self) -> Finished:
        async with anyio.create_task_group() as group:
            await group.start(watch_interrupts, self._interrupt, self._give_back)
            group.start_soon(self._outlet.run, group.cancel_scope)
            group.start_soon(self._spinner.run)
            self._view = self._open_view(group)
            group.start_soon(self._tick)
            try:
                with self._asking:
                    await self._ask()
            finally:
                self._give_back()
            finished = self._finished or self._cut_short()
            self._end_view()
            self._end_moderation()
            with anyio.move_on_after(1.0 if self.signal else None):
                await self._outlet.drained()
            group.cancel_scope.cancel()
        self._outlet.check()
        return finished

    async def _ask(self) -> None:
        self._spinner.say(f"asking {sum(member.trouble is None for member in self._members)}")
        async with ask_team(self._members, self.question) as events:
            async for event in events:
                self._take(event)

    def _take(self, event: AnyEvent) -> None:
        match event:
            case Asked():
                self._request_id = event.request_id
                self._pieces = {name: [] for name in event.specialists}
            case Moderating():
                self._begin_moderation(event)
            case Token(phase=str()):
                self._grow_moderation(event.content)
            case Token():
                self._pieces[event.name].append(event.content)
                if self._view_name == "lines":
                    self._spinner.stop()
            case Entry():
                self._entries.append(event)
                self._spinner.say(f"{len(self._entries)} of {len(self._pieces)} done")
                self._spinner.erase()
            case Finished():
                self._finished = event
            case _:
                pass
        if self._moderating is None or self._view_name == "json":
            self._view.event(event)
        self._save(event)

    def _save(self, event: AnyEvent) -> None:
        if self._saved is None or isinstance(event, Finished):
            return
        if self._saved_as_json:
            self._saved.write(as_line(event))
        elif isinstance(event, Entry):
            self._saved.write(block(event) + "\n")

    async def _tick(self) -> None:
        while True:
            self._view.tick(anyio.current_time())
            await anyio.sleep(TICK)

    def _cut_short(self) -> Finished:
        """How it stands when the question was withdrawn: who had not ended is an entry that failed, with what it said."""
        ended = {entry.name for entry in self._entries}
        elapsed = round(anyio.current_time() - self._began, 3)
        for name, pieces in self._pieces.items():
            if name not in ended:
                self._take(_withdrawn(name, "".join(pieces), elapsed))
        whole = [entry for entry in self._entries if entry.error is None]
        finished = Finished(
            request_id=self._request_id,
            responses=whole,
            responses_by_id={entry.specialist_id: entry.content for entry in whole},
            timed_out=[],
            failed=[entry for entry in self._entries if entry.error is not None],
            elapsed_time=elapsed,
            moderation=self._cut_moderation(elapsed),
        )
        self._end_view()
        return finished

    # -- the view -------------------------------------------------------------------------------------------------------

    def _open_view(self, group: anyio.abc.TaskGroup) -> View:
        if self._view_name == "columns":
            from supervisor.cli.columns import Columns, watch_keys

            group.start_soon(watch_keys, self._quit)
            return Columns(self._colour, colour=look.wants_colour(sys.stdout), over_ssh=self._over_ssh)
        if self._view_name == "lines":
            return Lines(self._outlet, self._colour if look.wants_colour(sys.stdout) else None)
        if self._view_name == "blocks":
            return Blocks(self._outlet)
        return Json(self._outlet)

    def _colour(self, name: str) -> int:
        return look.name_colour(self.everybody.place(name).position)

    def _end_view(self) -> None:
        """What columns showed goes to the scrollback, in the roster's order. A second time does nothing."""
        self._view.close()
        if self._view_name == "columns" and not self._is_transcribed:
            self._is_transcribed = True
            entries = {entry.name: entry for entry in self._entries}
            self._outlet.put("\n".join(block(entries[name]) for name in self._pieces if name in entries))

    def _give_back(self) -> None:
        self._spinner.stop()
        self._view.close()

    def _interrupt(self, number: int) -> None:
        self.signal = number
        self._asking.cancel()

    def _quit(self) -> None:
        self.quit = True
        self._asking.cancel()

    # -- afterwards -----------------------------------------------------------------------------------------------------

    def _begin_moderation(self, event: Moderating) -> None:
        self._moderating = event
        self._end_view()
        self._spinner.say(f"{event.phase}: waiting for {event.name}")
        if self._view_name != "json":
            self._outlet.put(f"\n== {event.phase} by {event.name} ==\n")

    def _grow_moderation(self, text: str) -> None:
        if not text:
            return  # it thinks
        self._spinner.stop()
        self._moderated.append(text)
        if self._view_name != "json":
            self._outlet.put(text)

    def _end_moderation(self) -> None:
        if self._moderating is None:
            return
        if self._view_name != "json":
            self._outlet.end_line()
        if self._saved is not None and not self._saved_as_json:
            head = f"== {self._moderating.phase} by {self._moderating.name} =="
            self._saved.write(f"{head}\n{''.join(self._moderated)}\n")

    def _cut_moderation(self, elapsed: float) -> Entry | None:
        event = self._moderating
        return _withdrawn(event.name, "".join(self._moderated), elapsed) if event is not None else None

    def _last(self, finished: Finished) -> None:
        if self._view_name == "json":
            try:
                sys.stdout.write(as_line(finished))
                sys.stdout.flush()
            except OSError as error:
                raise unwritable(error) from None
        if self._saved is not None:
            if self._saved_as_json:
                self._saved.write(as_line(finished))
            if self.signal is None or self._saved_as_json:
                self._saved.finish()
            else:
                self._saved.interrupted("Interrupted: " + summary(finished))
        for entry in [*finished.timed_out, *finished.failed]:
            if entry.error is not None and entry.error.code != "cancelled":
                tell(f"{entry.name}: {entry.error.error}")
        moderation = finished.moderation
        if moderation is not None and moderation.error is not None and moderation.error.code != "cancelled":
            tell(f"error: nothing was made of the answers: {moderation.name}: {moderation.error.error}")
        if finished.synthesis is None and any(entry.model == BUILTIN for entry in self._entries):
            tell(BUILTIN_NOTICE)
        tell(("Interrupted: " if self.signal is not None else "") + summary(finished))


def _withdrawn(name: str, content: str, elapsed: float) -> Entry:
    return Entry(
        name=name,
        specialist_id=names.specialist_id(name),
        socket_id=names.ai_id(name),
        content=content,
        timestamp=time.time(),
        elapsed=elapsed,
        done_reason="cancelled",
        error=Trouble("cancelled", "the question was withdrawn"),
    )
