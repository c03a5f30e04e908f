"""The supervisor, and everybody asked on their own port: what they say themselves, and what their supervisor thinks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import anyio
from msgspec import Struct

from protocol import __version__
from protocol.client import Connection, connect
from protocol.control import Entry, StatusReport
from protocol.errors import EmptyAnswer, ModelServerError, ProtocolError
from protocol.messages import Chat, HealthResponse, Options, Reset, StreamChunk, StreamEnd
from protocol.settings import ChildConfig, Restarter, SpecialistConfig
from supervisor.checkup.check import Check, fail, ok, warn
from supervisor.fleet.asking import asking

ANSWER_WITHIN = 2.0  # seconds for `health`, which no model has a part in
TOKEN_WITHIN = 120.0  # seconds for one token: a model may have to be loaded first


class Heard(Struct, frozen=True):
    """What somebody said of itself, in how many ms; or why it did not."""

    health: HealthResponse | None
    ms: float = 0.0
    problem: str | None = None


def supervisor(report: StatusReport | None, *, answered: bool, socket: Path) -> Check:
    """`report` is what the supervisor says, or what the last one wrote."""
    if report is None or (not answered and report.supervisor.state == "down"):
        return warn("supervisor", "the team is not running", "chorus up")
    if not answered:
        pid = report.supervisor.pid
        return fail("supervisor", f"the supervisor (pid {pid}) is gone without having ended", "chorus up")
    it = report.supervisor
    if it.version != __version__:
        theirs = it.version or "an older version"
        fact = f"the supervisor (pid {it.pid}) is {theirs}, this is {__version__}"
        return warn("supervisor", fact, "chorus down, then chorus up")
    return ok("supervisor", f"the supervisor runs (pid {it.pid}, {it.version}, {it.state}) at {socket}")


def restarter(report: StatusReport | None, wanted: Restarter) -> Check | None:
    """Who starts specialists again, where it is or should be systemd. `report` is the word of a supervisor that runs."""
    now = report.supervisor.restarter if report else wanted
    if now != wanted == "systemd":
        fact = (
            "systemd is to restart the specialists (supervision.restarter), and the supervisor that runs does it itself"
        )
        return warn("restarter", fact, "chorus down, then chorus service install --restarter systemd")
    if now == "systemd":
        fact = "systemd restarts the specialists (specialist@NAME.service); the supervisor observes and hands on what is asked"
        return ok("restarter", fact)
    return None


async def ask_all(configs: Sequence[ChildConfig]) -> dict[str, Heard]:
    """Everybody at once."""
    heard: dict[str, Heard] = {}

    async def one(config: ChildConfig) -> None:
        heard[config.name] = await ask(config)

    async with anyio.create_task_group() as group:
        for config in configs:
            group.start_soon(one, config)
    return heard


async def ask(config: ChildConfig) -> Heard:
    """Its health, by its own port. The client refuses a connection that met itself."""
    began = time.perf_counter()
    try:
        with anyio.fail_after(ANSWER_WITHIN):
            async with asking(config) as ask_it:
                answer = await ask_it()
    except TimeoutError:
        return Heard(None, problem=f"no answer on port {config.port} within {ANSWER_WITHIN:g} s")
    except ProtocolError as error:
        return Heard(None, problem=error.sentence)
    if answer.ai_id != config.ai_id:
        return Heard(None, problem=f"somebody else answers on port {config.port}")
    return Heard(answer, (time.perf_counter() - began) * 1000)


def member(config: ChildConfig, heard: Heard, status: Entry | None, *, supervised: bool) -> Check | None:
    """One line for a specialist or the gateway; None where nothing is to be said: it does not run because nothing runs."""
    name = f"specialist.{config.name}" if isinstance(config, SpecialistConfig) else config.name
    health = heard.health
    if health is None:
        if status is None or not supervised:
            return None
        if status.wanted == "down":
            return ok(name, f"{config.name} is {status.state}, as asked", f"chorus start {config.name}")
        why = f": {status.last_error}" if status.last_error else ""
        fact = f"{config.name} is {status.state}{why}; {heard.problem}"
        return fail(name, fact, status.remedy or f"chorus logs {config.name}")
    fact = f"{config.name} answers on port {config.port} in {heard.ms:.1f} ms, {health.status}, pid {health.pid}"
    if not supervised and (status is None or status.pid != health.pid):
        setting = "port_base" if isinstance(config, SpecialistConfig) else "gateway.port"
        remedy = f"another {setting}, where that is another team's"
        return warn(name, f"{fact}, and no supervisor of ours started it", remedy)
    if not supervised:
        return warn(name, f"{fact}, without a supervisor", "chorus up")
    if status is not None and status.state not in ("ready", "degraded", "draining"):
        return warn(name, f"{fact}, and its supervisor says {status.state}", f"chorus logs {config.name}")
    if health.status == "degraded":
        return warn(name, f"{fact}: {health.backend.error or health.backend.state}", "see the model server below")
    return ok(name, fact)


async def one_token(config: SpecialistConfig) -> Check:
    """Asks for one token and says how long the first one took. The conversation is deleted again."""
    name = f"token.{config.name}"
    session = f"chorus-doctor-{secrets.token_hex(4)}"
    question = Chat(content="Hi", stream=True, options=Options(max_tokens=1), context={"session_id": session})
    began = time.perf_counter()
    try:
        with anyio.fail_after(TOKEN_WITHIN):
            async with connect(config.addresses[0], config.port) as connection:
                took, model = await _first_token(connection, question, began)
                await connection.call(Reset(session_id=session))
    except TimeoutError:
        return fail(name, f"{config.name} said nothing within {TOKEN_WITHIN:g} s", f"chorus logs {config.name}")
    except EmptyAnswer:
        return warn(name, f"{config.name} answered with nothing", "another model may do better: backend.model")
    except ModelServerError as error:
        return fail(name, f"{config.name}: {error.sentence}", "see the model server above")
    except ProtocolError as error:
        return fail(name, f"{config.name}: {error.sentence}", f"chorus logs {config.name}")
    return ok(name, f"{config.name} gave its first token after {took:.0f} ms, from {model}")


async def _first_token(connection: Connection, question: Chat, began: float) -> tuple[float, str]:
    """Milliseconds to the first token, and the model it came from. Reads the answer to its end."""
    took, model = 0.0, "?"
    async for reply in connection.ask(question):
        if isinstance(reply, StreamChunk) and not took:
            took = (time.perf_counter() - began) * 1000
        elif isinstance(reply, StreamEnd):
            model = reply.model
    return took, model
