"""The house's habits, checked: who imports whom, who makes what, how large a room may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = sorted((ROOT / "broker").rglob("*.py"))
BIN = Path(sys.executable).parent


def _names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        ["lint-imports"],
        ["mypy"],
    ],
    ids=" ".join,
)
def test_what_make_check_checks(command: list[str]) -> None:
    """Format, lint, import contracts and types are in order (so CI needs no other command)."""
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("room", ROOMS, ids=_names(ROOMS))
def test_a_room_says_why_it_exists_and_stays_small(room: Path) -> None:
    """Each module has a docstring and 350 lines at the most; each function 40, but for
    constructors, which put things together."""
    text = room.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert len(text.splitlines()) <= 350
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 40 or node.name == "__init__", f"{node.name}: {length} lines"


def _makers(name: str) -> Iterator[str]:
    for room in ROOMS:
        for node in ast.walk(ast.parse(room.read_text())):
            if isinstance(node, ast.Call):
                function = node.func
                called = getattr(function, "id", None) or getattr(function, "attr", None)
                if called == name:
                    yield str(room.relative_to(ROOT / "broker"))


def test_trust_is_made_in_one_place() -> None:
    """Only policy makes a `Grant`; only authn a `Caller`; only config a `Snapshot`."""
    assert set(_makers("Grant")) == {"policy.py"}
    assert {Path(name).parts[0] for name in _makers("Caller")} == {"authn"}
    assert set(_makers("Snapshot")) == {"config.py"}


def test_secrets_are_revealed_where_they_are_sent() -> None:
    """`.reveal()` stands only in the rooms that seal, sign, send or answer with a secret."""
    allowed = {
        "api.py", "fitness.py", "callbacks.py", "handles.py", "upstreams/filling.py", "upstreams/oauth.py", "upstreams/proofs.py",
        "authn/__init__.py", "authn/introspection.py", "authn/jwt_caller.py", "authn/keysets.py",
        "state/vault.py", "state/records.py", "state/redis_store.py", "state/addresses.py",
    }  # fmt: skip
    assert set(_makers("reveal")) <= allowed


def test_no_room_is_named_like_the_standard_library() -> None:
    """No module of the package shadows one of the standard library's."""
    for room in ROOMS:
        assert room.stem in ("__init__", "__main__") or room.stem not in sys.stdlib_module_names


def test_every_exemption_has_its_reason() -> None:
    """Each `noqa` of the package names its rule and says why; `type: ignore` names its code."""
    for room in ROOMS:
        for line in room.read_text().splitlines():
            if "noqa" in line:
                assert re.search(r"noqa: [A-Z0-9, ]+\s+\(.+", line), f"{room}: {line}"
            if "type: ignore" in line:
                assert re.search(r"type: ignore\[[\w, -]+\]", line), f"{room}: {line}"


def test_no_index_host_and_no_machine_path_is_named() -> None:
    """Nothing in the tree names a package index, or a path of the machine it was written on."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    words = [
        "pypi" + ".org",
        "python" + "hosted",
        "registry." + "npmjs",
        "/work" + "/",
        "/root" + "/",
    ]
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if name and path.is_file():
            text = path.read_text(errors="replace")
            assert not [word for word in words if word in text], name
