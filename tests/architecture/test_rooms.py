"""The rooms are as DESIGN and STYLE say: signs, sizes, one reader of the environment."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import worker
from worker import errors

ROOT = Path(worker.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if "versions" not in path.parts)
LONGEST_MODULE, LONGEST_FUNCTION = 300, 60

#: Rooms whose sign holds more than a docstring, and why.
MORE_THAN_A_SIGN = {
    "runtime": "users import one name: `from worker.runtime import durable`",
}
#: Who reads the environment, and why.
READERS = {
    "settings.py": "the only reader",
    "stack/process.py": "hands it down whole and unread to what it starts",
}
#: Who imports kombu's transports, and why.
TRANSPORTS = {
    "broker/transport.py": "the one point that every task message passes",
    "broker/routing.py": "matches the patterns of topic exchanges as kombu does",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py"], ids=name_of)
def test_every_room_has_a_sign_and_nothing_else(path: Path) -> None:
    tree = tree_of(path)

    assert ast.get_docstring(tree), "a room's sign says what it is and what it may touch"
    if path.parent.name not in MORE_THAN_A_SIGN:
        assert len(tree.body) == 1


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_is_a_small_room(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST_MODULE
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, node.name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))


def test_only_the_settings_read_the_environment() -> None:
    readers = {
        name_of(path)
        for path in MODULES
        if re.search(r"\bos\.(environ|getenv)|from os import .*(environ|getenv)", path.read_text())
    }

    assert readers == set(READERS)


def test_only_the_broker_imports_kombus_transports() -> None:
    importers = {
        name_of(path)
        for path in MODULES
        if any(name.startswith("kombu.transport") for name in imported(tree_of(path)))
    }

    assert importers == set(TRANSPORTS)


def test_no_module_is_named_after_a_pattern() -> None:
    banned = {"utils", "util", "common", "helpers", "helper", "manager", "core", "misc", "base"}

    assert not [name_of(path) for path in MODULES if path.stem in banned]


_IMPORT_ALL = """
import importlib, pkgutil, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("an import opened a socket")

socket.socket.connect = socket.socket.connect_ex = socket.socket.bind = refuse
socket.create_connection = socket.getaddrinfo = refuse
import threading
before = threading.active_count()
import worker
for info in pkgutil.walk_packages(worker.__path__, "worker."):
    if not info.name.startswith("worker.ledger.migrations") and info.name != "worker.__main__":
        importlib.import_module(info.name)
assert threading.active_count() == before, threading.enumerate()
print("imported", len([name for name in sys.modules if name.startswith("worker.")]))
"""


def test_nothing_opens_on_import() -> None:
    # Without a setting and without a network, in a process of its own
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _IMPORT_ALL],
        env={"PYTHONPATH": str(ROOT.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("imported ")


def drawn() -> dict[str, tuple[str, str]]:
    """Each exception of the drawing: its parent, and what is written beside it."""
    found: dict[str, tuple[str, str]] = {}
    branch: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([│├└─ ]*)([A-Z]\w+)(.*)$", line)
        if match is None or (not match[1] and match[2] != "LedgerError"):
            continue
        depth = len(match[1]) // 4
        branch[depth:] = [match[2]]
        found[match[2]] = (branch[depth - 1] if depth else "Exception", match[3])
    return found


def test_the_drawing_of_the_exceptions_is_their_tree() -> None:
    classes = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.LedgerError)
    }

    assert {name: parent for name, (parent, _) in drawn().items()} == {
        name: value.__bases__[0].__name__ for name, value in classes.items()
    }


def test_the_drawing_tells_each_exit_code_and_status() -> None:
    for name, (_, note) in drawn().items():
        value = getattr(errors, name)
        if exit_code := re.search(r"exit (\d)", note):
            assert value.exit_code == int(exit_code[1]), name
        if status := re.search(r"(?:HTTP )?\b([45]\d\d)\b", note):
            assert value.status == int(status[1]), name
