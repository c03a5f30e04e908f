"""The control socket's messages: what the command line and the gateway ask of the supervisor.

The framing is the specialists'. Each request is answered by any number of `progress` lines (and `planned`) and exactly one
`result`, or one `error`; `watch` goes on until the connection ends. The status shapes are also what
`chorus status --json` prints and what the registry keeps on disk: fields are only ever added.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from protocol.messages import Error, Request, RequestId
from protocol.names import GATEWAY
from protocol.shape import Mistake

# -- requests ---------------------------------------------------------------------------------------------------------


class Named(Request, frozen=True, omit_defaults=True):
    """A request about some specialists; no names means all of them."""

    names: list[str] | None = None


class Status(Named, frozen=True, tag="status"):
    pass


class Watch(Request, frozen=True, tag="watch", omit_defaults=True):
    pass


class Start(Named, frozen=True, tag="start", omit_defaults=True):
    wait: bool = True


class Stop(Named, frozen=True, tag="stop", omit_defaults=True):
    wait: bool = True
    grace: float | None = None


class Restart(Named, frozen=True, tag="restart", omit_defaults=True):
    wait: bool = True
    rolling: bool = False


class Drain(Named, frozen=True, tag="drain", omit_defaults=True):
    wait: bool = True


class Reload(Request, frozen=True, tag="reload", omit_defaults=True):
    """Read the configuration again and do what follows from it; with `dry_run` only say what that is."""

    dry_run: bool = False


class Shutdown(Request, frozen=True, tag="shutdown", omit_defaults=True):
    grace: float | None = None


class TeamChat(Request, frozen=True, tag="team_chat", omit_defaults=True):
    """A fan-out run by the supervisor for clients that cannot run it themselves."""

    content: str = ""
    names: list[str] | None = None
    timeout: float | None = None
    deadline: float | None = None


class Route(Request, frozen=True, tag="route", omit_defaults=True):
    """Tell the orchestration rules; with `rules` those are put in the place of all others first, or refused as a whole."""

    rules: dict[str, Any] | None = None


AnyControl = Status | Watch | Start | Stop | Restart | Drain | Reload | Shutdown | TeamChat | Route
_TYPES: dict[str, type[AnyControl]] = {
    cls.__struct_config__.tag: cls  # type: ignore[misc]
    for cls in (Status, Watch, Start, Stop, Restart, Drain, Reload, Shutdown, TeamChat, Route)
}
CONTROL_TYPES = tuple(_TYPES)
decoders = {name: msgspec.json.Decoder(cls).decode for name, cls in _TYPES.items()}

# -- what stands in the registry ----------------------------------------------------------------------------------------


AS_ASKED = "stopped as asked"  # the cause of an end that was no failure
ABSENT = "absent"  # the state in transitions of a specialist before it is added, and after it is removed
DISABLED = "disabled"  # the state of a gateway that is not to be
HOUSE = "supervisor"  # the name in transitions of the supervisor itself


class LastExit(Struct, frozen=True):
    """How a process ended last: why, as a sentence; the code or the signal; when, as a Unix time."""

    cause: str
    code: int | None
    signal: str | None
    at: float


class KeptStatus(Struct, frozen=True, kw_only=True):
    """Whoever is kept alive, as the supervisor knows it. `uptime` in seconds; `since` is the Unix time of the last change.

    `attempt` counts the failures in a row before what is now; `next_due` is the Unix time of the next try, while one waits.
    `recycled` counts replacements because of max_rss_bytes; `started_because` is why the process was started; `notice` is
    what a person should know that is no error. `has_port` is whether who connects to it meets ours, or waits for it, and no
    stranger.
    """

    state: str
    wanted: str = "up"
    pid: int | None = None
    uptime: float | None = None
    restarts: int = 0
    in_flight: int = 0
    rss_bytes: int | None = None
    last_error: str | None = None
    remedy: str | None = None
    last_exit: LastExit | None = None
    since: float = 0.0
    attempt: int = 0
    next_due: float | None = None
    recycled: int = 0
    started_because: str | None = None
    notice: str | None = None
    has_port: bool = True


class SpecialistStatus(KeptStatus, frozen=True, kw_only=True):
    """One specialist."""

    name: str
    ai_id: str
    host: str
    port: int
    description: str = ""
    model: str | None = None
    backend: str | None = None
    queued: int = 0
    first_token_ms: float | None = None
    tokens_per_second: float | None = None
    prompt_tokens_per_second: float | None = None


class GatewayStatus(KeptStatus, frozen=True, kw_only=True):
    """The process that speaks HTTP. `url` is where this machine reaches it, None where there is to be none."""

    url: str | None

    @property
    def name(self) -> str:
        return GATEWAY


class Configured(Struct, frozen=True):
    """Which configuration is in force: when it was read, as a Unix time, and every place where a file of it may be, with the
    time of its last change, or None where there was none.
    """

    at: float
    files: dict[str, float | None]


class SupervisorStatus(Struct, frozen=True):
    """`state` is running, stopping or down; the rest is that of the process that wrote this.

    `version` is chorus's own; None from a supervisor that did not tell it yet. `restarter` is who starts specialists again:
    chorus or systemd. `notice` is what a person should know of the supervisor itself, and `remedy` what to do about it.
    """

    pid: int | None
    uptime: float | None
    state: str
    version: str | None = None
    configuration: Configured | None = None
    restarter: str = "chorus"
    notice: str | None = None
    remedy: str | None = None


class BackendStatus(Struct, frozen=True):
    """What the team's answers come from."""

    kind: str
    url: str | None
    state: str
    error: str | None
    model: str | None = None


Entry = SpecialistStatus | GatewayStatus  # of the registry


class StatusReport(Struct, frozen=True, kw_only=True):
    """Everything at one moment: `chorus status --json`."""

    version: int = 1
    supervisor: SupervisorStatus
    gateway: GatewayStatus
    backend: BackendStatus
    specialists: list[SpecialistStatus]

    @property
    def everybody(self) -> list[Entry]:
        """The specialists and, where there is to be one, the gateway."""
        return [*self.specialists, *([self.gateway] if self.gateway.state != DISABLED else [])]


# -- answers ------------------------------------------------------------------------------------------------------------


class Answer(Struct, frozen=True, omit_defaults=True):
    request_id: RequestId | None = None


class Progress(Answer, frozen=True, tag="progress", kw_only=True, rename={"from_": "from"}):
    name: str
    from_: str
    to: str
    cause: str
    pid: int | None = None


class Outcome(Struct, frozen=True, omit_defaults=True):
    """What became of one specialist in a command: pids before and after, milliseconds without an accepting process."""

    name: str
    old_pid: int | None = None
    new_pid: int | None = None
    down_ms: float | None = None
    error: str | None = None


class Change(Struct, frozen=True, omit_defaults=True):
    """What a reload does with one specialist, and why: the settings that changed, each in a few words.

    `live`: taken over, no process is touched. `retry`: it had failed, and is given another chance.
    """

    name: str
    action: Literal["add", "remove", "restart", "live", "retry", "keep"]
    why: list[str] = []


class Plan(Struct, frozen=True, kw_only=True):
    """What a reload does: with each specialist, with the gateway, and with settings of the whole team.

    `live` settings count from now on, `later` ones at the next `chorus up`. With `mistakes`, which are those of a broken
    configuration, it does nothing.
    """

    specialists: list[Change] = []
    gateway: Change | None = None
    live: list[str] = []
    later: list[str] = []
    mistakes: list[str] = []

    @property
    def changes(self) -> list[Change]:
        """Those of everybody."""
        return [*self.specialists, *([self.gateway] if self.gateway else [])]


class Planned(Answer, frozen=True, tag="planned", kw_only=True):
    """Said before a plan is carried out."""

    plan: Plan


class Result(Answer, frozen=True, tag="result", kw_only=True):
    """`changed` and `failed` list what became of whom; `status`, `answer`, `plan` and `rules` only where they were asked for.

    `mistakes` are those of rules that were refused.
    """

    ok: bool
    changed: list[Outcome]
    failed: list[Outcome]
    status: StatusReport | None = None
    answer: dict[str, Any] | None = None
    plan: Plan | None = None
    rules: dict[str, Any] | None = None
    mistakes: list[Mistake] = []


class Snapshot(Answer, frozen=True, tag="snapshot", kw_only=True):
    """The first line of `watch`, and the line after every `gap`. `seq` is the last transition it contains."""

    seq: int
    status: StatusReport


class Transition(Answer, frozen=True, tag="transition", kw_only=True, rename={"from_": "from"}):
    """One change of state, of a specialist or of the supervisor itself, whose name is HOUSE. Also a record on disk.

    `seq` counts without a hole for the life of the state folder; `at` is a Unix time, `monotonic` the clock since boot that
    nobody can set. `pid` is the process now, `old_pid` the one before where it is another; `code` or `signal` is how that
    one ended. `attempt` and `next_due` are those of the specialist's status.
    """

    seq: int
    name: str
    from_: str
    to: str
    cause: str
    at: float
    pid: int | None = None
    old_pid: int | None = None
    code: int | None = None
    signal: str | None = None
    attempt: int = 0
    next_due: float | None = None
    monotonic: float | None = None


class Gap(Answer, frozen=True, tag="gap", kw_only=True):
    """Transitions are missing: this reader was slow, and a snapshot follows; or they could not be written to disk."""

    missed: int


class TeamEvent(Answer, frozen=True, tag="team_event", kw_only=True):
    event: dict[str, Any]


AnyAnswer = Progress | Planned | Result | Snapshot | Transition | Gap | TeamEvent | Error
decode_answer = msgspec.json.Decoder(AnyAnswer).decode
