"""Imports point downward (style.md, rules 3, 4, 5 and 31). The sources are parsed, not imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("protocol", "daemon", "supervisor")
LAYERS = {"fleet": 0, "team": 1, "gateway": 2, "cli": 3, "shell": 3, "app": 3}  # inside supervisor
PROTOCOL_IO = ("protocol/client.py", "protocol/peer.py")  # a client, and the kernel asked who is at the other end
DOES_IO = {
    "anyio",
    "asyncio",
    "http",
    "multiprocessing",
    "select",
    "selectors",
    "socket",
    "ssl",
    "subprocess",
}
FORK_SERVER = ("supervisor/fleet/forkserver.py", "supervisor/fleet/child.py", "supervisor/fleet/held.py")


def imports(path: str, tree: ast.Module) -> Iterator[str]:
    """The full names of what a module imports, also inside functions."""
    package = PurePosixPath(path).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def layer(name: str) -> int | None:
    """The layer of a dotted name inside supervisor, None where it has none."""
    parts = name.split(".")
    return LAYERS.get(parts[1]) if parts[0] == "supervisor" and len(parts) > 1 else None


def is_allowed(path: str, imported: str) -> bool:
    """Whether the module at this path may import that name."""
    home, top = path.partition("/")[0], imported.partition(".")[0]
    if home == "protocol":
        if top in DOES_IO:
            return path in PROTOCOL_IO
        return top in {"protocol", "msgspec"} or top in sys.stdlib_module_names
    if home == "daemon":
        return top != "supervisor"

    mine, theirs = layer(path.removesuffix(".py").replace("/", ".")), layer(imported)
    if top == "daemon" and mine is not None and mine < LAYERS["cli"]:
        return path in FORK_SERVER
    return mine is None or theirs is None or theirs <= mine


def violations(path: str, source: str) -> list[str]:
    return [name for name in imports(path, ast.parse(source)) if not is_allowed(path, name)]


def is_docstring_and_names(source: str) -> bool:
    """Whether a package's front page holds a docstring, imports and dunder names, nothing else."""
    tree = ast.parse(source)
    if not ast.get_docstring(tree):
        return False
    return all(
        isinstance(node, ast.Import | ast.ImportFrom)
        or (
            isinstance(node, ast.Assign)
            and all(isinstance(to, ast.Name) and to.id.startswith("__") for to in node.targets)
            and not any(isinstance(part, ast.Call) for part in ast.walk(node))
        )
        for node in tree.body[1:]
    )


SOURCES = sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES)
def test_imports_point_downward(path: str) -> None:
    assert violations(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.endswith("__init__.py")])
def test_a_front_page_holds_a_docstring_and_names(path: str) -> None:
    assert is_docstring_and_names((ROOT / path).read_text())


def test_all_three_packages_were_looked_at() -> None:
    assert {path.split("/")[0] for path in SOURCES} == set(PACKAGES)


def test_folders_of_tests_have_no_init() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("protocol/codec.py", "import daemon"),
        ("protocol/codec.py", "from supervisor.fleet import keeper"),
        ("protocol/codec.py", "import aiohttp"),
        ("protocol/codec.py", "import anyio.abc"),
        ("protocol/codec.py", "from socket import socket"),
        ("protocol/codec.py", "def f():\n    import asyncio"),
        ("protocol/client.py", "import psutil"),
        ("daemon/server.py", "import supervisor"),
        ("daemon/backends/ollama.py", "from supervisor.config import load"),
        ("daemon/server.py", "from ..supervisor import config"),
        ("supervisor/fleet/keeper.py", "from daemon.server import serve"),
        ("supervisor/fleet/keeper.py", "from supervisor.team import fan_out"),
        ("supervisor/fleet/keeper.py", "from supervisor import team"),
        ("supervisor/fleet/keeper.py", "from ..team import fan_out"),
        ("supervisor/fleet/keeper.py", "from .. import gateway"),
        ("supervisor/fleet/forkserver.py", "import supervisor.cli"),
        ("supervisor/team/fan_out.py", "import daemon"),
        ("supervisor/team/fan_out.py", "from supervisor.gateway import app"),
        ("supervisor/gateway.py", "from supervisor.cli import main"),
        ("supervisor/gateway/api.py", "import daemon"),
        ("supervisor/fleet/child.py", "from supervisor.gateway import process"),
        ("supervisor/fleet/asking.py", "from supervisor.gateway.app import build"),
    ],
)
def test_an_import_that_points_upward_is_found(path: str, source: str) -> None:
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "protocol/codec.py",
            "from __future__ import annotations\nimport re, msgspec\nfrom protocol import messages",
        ),
        ("protocol/client.py", "import anyio, socket"),
        ("protocol/peer.py", "import socket"),
        ("daemon/server.py", "import anyio\nfrom protocol.framing import LineBuffer\nfrom . import sessions"),
        ("supervisor/fleet/forkserver.py", "from daemon.server import serve"),
        ("supervisor/fleet/keeper.py", "from supervisor.config import load\nfrom . import health"),
        ("supervisor/team/fan_out.py", "from supervisor.fleet import registry\nfrom ..fleet import registry"),
        ("supervisor/gateway.py", "from supervisor.team import fan_out"),
        ("supervisor/gateway/app.py", "from supervisor.fleet.processes import resident"),
        ("supervisor/cli/main.py", "import daemon\nfrom supervisor import gateway, app"),
        ("supervisor/app.py", "import daemon\nfrom supervisor.cli import main"),
    ],
)
def test_an_import_that_points_downward_is_allowed(path: str, source: str) -> None:
    assert violations(path, source) == []


@pytest.mark.parametrize(
    ("source", "clean"),
    [
        ('"""Doc."""', True),
        ('"""Doc."""\nfrom a.b import c\n__all__ = ["c"]', True),
        ("from a import b", False),
        ("", False),
        ('"""Doc."""\nx = 1', False),
        ('"""Doc."""\n__version__ = read()', False),
        ('"""Doc."""\ndef f(): ...', False),
        ('"""Doc."""\nprint()', False),
    ],
)
def test_a_front_page_that_does_more_is_found(source: str, clean: bool) -> None:
    assert is_docstring_and_names(source) is clean


def test_the_installed_names_are_ours(tmp_path: Path) -> None:
    """`daemon`, `protocol` and `supervisor` also exist on PyPI: an installed chorus must not meet those."""
    try:
        ours = metadata.distribution("greek-chorus")
    except metadata.PackageNotFoundError:
        reason = f"greek-chorus is not installed in {sys.executable}"
        print(reason)
        pytest.skip(reason)
    code = "import protocol, daemon, supervisor\nfor m in (protocol, daemon, supervisor): print(m.__file__)"
    found = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    for package, file in zip(PACKAGES, found.stdout.split("\n"), strict=False):
        places = {
            ROOT / package / "__init__.py",
            Path(str(ours.locate_file(f"{package}/__init__.py"))).resolve(),
        }
        assert Path(file).resolve() in places
