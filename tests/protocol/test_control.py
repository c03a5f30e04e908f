"""What is said on the control socket."""

from __future__ import annotations

import inspect
import json
from typing import Any

import msgspec
import pytest

from protocol import control, messages
from protocol.codec import encode, parse_json
from protocol.control import AnyAnswer, AnyControl, decode_answer
from protocol.errors import BadJson, BadRequest
from protocol.shape import Mistake

WIRE_TYPES = {
    "status", "watch", "start", "stop", "restart", "drain", "reload", "team_chat", "route", "trace",
    "shutdown",
}  # fmt: skip
NOT_WRITTEN_YET = {"trace"}  # its fields are not settled

REQUESTS: list[AnyControl] = [
    control.Status(),
    control.Status(request_id="s", names=["apollo"]),
    control.Watch(request_id=1),
    control.Start(names=["apollo", "tekton"], wait=False),
    control.Stop(grace=1.5),
    control.Restart(names=[], rolling=True),
    control.Drain(wait=False),
    control.Reload(dry_run=True),
    control.Shutdown(grace=0.0),
    control.TeamChat(content="hi", names=["apollo"], timeout=1.0, deadline=2.0),
    control.Route(),
    control.Route(rules={"routing_rules": []}),
]
REPORT = control.StatusReport(
    supervisor=control.SupervisorStatus(pid=1, uptime=2.0, state="running"),
    gateway=control.GatewayStatus(url="http://127.0.0.1:45080", state="ready", pid=2),
    backend=control.BackendStatus(kind="ollama", url=None, state="ready", error=None),
    specialists=[
        control.SpecialistStatus(
            name="apollo",
            ai_id="apollo-ci",
            host="127.0.0.1",
            port=45012,
            state="ready",
            wanted="up",
            last_exit=control.LastExit(cause="killed", code=None, signal="SIGKILL", at=1.0),
        )
    ],
)
ANSWERS: list[AnyAnswer] = [
    control.Progress(request_id="r", name="apollo", from_="starting", to="ready", cause="said so", pid=3),
    control.Result(ok=True, changed=[control.Outcome("apollo", 1, 2, 0.0)], failed=[control.Outcome("hermes")]),
    control.Result(ok=True, changed=[], failed=[], status=REPORT, answer={"a": 1}),
    control.Planned(plan=control.Plan(specialists=[control.Change("apollo", "restart", ["persona"])], later=["x"])),
    control.Result(ok=False, changed=[], failed=[], plan=control.Plan(mistakes=["chorus.toml:3: x"])),
    control.Snapshot(seq=4, status=REPORT),
    control.Transition(seq=5, name="apollo", from_="ready", to="down", cause="killed", at=1.0),
    control.Gap(missed=3),
    control.TeamEvent(event={"kind": "token", "text": "x"}),
    messages.Error(request_id="r", code="not_found", error="no such specialist", partial=""),
    control.Result(ok=True, changed=[], failed=[], rules={"routing_rules": []}),
    control.Result(ok=False, changed=[], failed=[], mistakes=[Mistake("a[0].b", "str", "3")]),
]
STRUCTS = [
    cls
    for _, cls in inspect.getmembers(control, inspect.isclass)
    if issubclass(cls, msgspec.Struct) and cls.__module__ == control.__name__
]


def name(value: object) -> str:
    return type(value).__name__


def test_the_types_are_the_wires() -> None:
    assert set(control.CONTROL_TYPES) | NOT_WRITTEN_YET == WIRE_TYPES
    assert set(control.decoders) == set(control.CONTROL_TYPES)
    assert len(control.CONTROL_TYPES) == len(AnyControl.__args__)


@pytest.mark.parametrize("request_", REQUESTS, ids=name)
def test_every_request_comes_back_as_it_went(request_: AnyControl) -> None:
    line = encode(request_)
    assert control.decoders[json.loads(line)["type"]](line) == request_


@pytest.mark.parametrize("answer", ANSWERS, ids=name)
def test_every_answer_comes_back_as_it_went(answer: AnyAnswer) -> None:
    line = encode(answer)
    assert line.count(b"\n") == 1
    assert decode_answer(line) == answer


def test_no_type_is_left_out_of_the_round_trips() -> None:
    assert {type(one) for one in REQUESTS} == set(AnyControl.__args__)
    assert {type(one) for one in ANSWERS} == set(AnyAnswer.__args__)


@pytest.mark.parametrize("answer", [ANSWERS[0], ANSWERS[6]], ids=name)
def test_a_change_of_state_has_from_and_to(answer: Any) -> None:
    sent = json.loads(encode(answer))
    assert (sent["from"], sent["to"]) == (answer.from_, answer.to)
    assert "from_" not in sent


def test_a_result_always_lists_who_changed_and_who_failed() -> None:
    assert json.loads(encode(control.Result(ok=True, changed=[], failed=[]))) == {
        "type": "result",
        "ok": True,
        "changed": [],
        "failed": [],
    }


def test_no_downtime_is_a_figure() -> None:
    assert json.loads(encode(ANSWERS[1]))["changed"][0]["down_ms"] == 0.0


@pytest.mark.parametrize("cls", STRUCTS, ids=lambda cls: cls.__name__)
def test_a_message_is_a_frozen_value_that_ignores_unknown_fields(cls: type[msgspec.Struct]) -> None:
    assert cls.__struct_config__.frozen
    assert not cls.__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize("kind", control.CONTROL_TYPES)
def test_a_request_needs_no_field_but_its_type(kind: str) -> None:
    request = control.decoders[kind](json.dumps({"type": kind, "unknown": [1]}).encode())
    assert request.request_id is None
    assert getattr(request, "names", None) is None


@pytest.mark.parametrize(
    ("kind", "line", "place"),
    [
        ("start", b'{"type":"start","names":"apollo"}', "names:"),
        ("start", b'{"type":"start","names":["apollo",1]}', "names[1]:"),
        ("start", b'{"type":"start","wait":null}', "wait:"),
        ("stop", b'{"type":"stop","grace":"1s"}', "grace:"),
        ("team_chat", b'{"type":"team_chat","content":null}', "content:"),
        ("watch", b'{"type":"watch","request_id":1.5}', "request_id:"),
    ],
)
def test_the_wrong_shape_is_refused_with_the_field(kind: str, line: bytes, place: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_json(control.decoders[kind], line)
    assert str(caught.value).startswith(place)


def test_what_is_not_json_is_refused_with_the_byte() -> None:
    with pytest.raises(BadJson, match="byte 9 "):
        parse_json(control.decoders["watch"], b'{"type": }')
