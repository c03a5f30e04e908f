"""The description of all routes, and whether the gateway is as it is described."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
from gatewaying import gateway, gateway_of
from scripted import EchoBackend
from team import ROOT, Team

from supervisor.gateway.openapi import EVERYWHERE, document
from supervisor.gateway.operations import OPERATIONS

FAST = """
[backend]
kind = "builtin"
pace = 100000.0
"""
ENDLESS = "/api/events"


def references(node: Any) -> Iterator[str]:
    """Every `$ref` in a document."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for one in node:
            yield from references(one)


async def test_every_route_is_described_with_what_every_route_may_answer(tmp_path: Path) -> None:
    async with gateway(tmp_path, apollo=EchoBackend()) as served:
        told = await served.get("/openapi.json")
    assert told["openapi"].startswith("3.1")
    described = {(method.upper(), path) for path, methods in told["paths"].items() for method in methods}
    assert described == {(one.method, one.path) for one in OPERATIONS if not one.is_hidden}
    for methods in told["paths"].values():
        for one in methods.values():
            assert {"200", *map(str, EVERYWHERE)} <= one["responses"].keys()
            assert one["summary"]
            assert one["description"]


def test_every_reference_leads_somewhere_and_names_are_given_once() -> None:
    told = document(OPERATIONS)
    for reference in references(told):
        node: Any = told
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
        assert node
    names = [one["operationId"] for methods in told["paths"].values() for one in methods.values()]
    assert len(set(names)) == len(names)
    assert not [name for name in told["components"]["schemas"] if "." in name], "two types have one name"
    for methods in told["paths"].values():
        for one in methods.values():
            for link in one["responses"]["200"].get("links", {}).values():
                assert link["operationId"] in names


def test_what_needs_no_key_says_so_and_the_rest_takes_one_either_way() -> None:
    told = document(OPERATIONS)
    assert told["paths"]["/health"]["get"]["security"] == []
    assert told["security"] == [{"bearer": []}, {"apiKey": []}, {}]
    assert told["paths"]["/api/specialists/{id}/stop"]["post"]["x-scope"] == "admin"


async def test_schemathesis_finds_no_failure(tmp_path: Path) -> None:
    """All of its checks, on every route but the one that never ends. The seed is fixed, so that a failure is one for all."""
    with Team.start(tmp_path, FAST, roster=["apollo", "athena", "metis"]) as team:
        async with gateway_of(team, requests_per_minute=1_000_000) as served:
            call = [
                *(sys.executable, "-P", "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
                *("--config-file", str(ROOT / "tests/schemathesis.toml")),
                *("run", f"{served.url}/openapi.json"),
                *("--exclude-path", ENDLESS, "--max-examples", "5", "--seed", "8003", "--no-color"),
            ]
            env = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "SCHEMATHESIS_HOOKS": "schemathesis_hooks"}
            with anyio.fail_after(180):
                done = await anyio.run_process(call, check=False, cwd=tmp_path, env=env, stderr=None)
    assert done.returncode == 0, done.stdout.decode()
