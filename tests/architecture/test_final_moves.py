"""Every statement that makes jobs final is followed by `carry_on` (PROTOCOL 29)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import worker

LEDGER = Path(worker.__file__).parent / "ledger"

#: An UPDATE of jobs, or an upsert, with all that it sets.
_SETS = re.compile(r"\b(?:UPDATE\s+(?:ledger\.)?jobs|DO\s+UPDATE)\s+SET\b(.*?)(?:\bWHERE\b|\Z)",
                   re.DOTALL)  # fmt: skip
#: What it sets the state to, up to the next column.
_STATE = re.compile(r"(?<![\w.])state\s*=\s*(.*?)(?=,\s*\w+\s*=|\Z)", re.DOTALL)
_NOT_FINAL = re.compile(r"\s*'(?:queued|running|scheduled)'\s*\Z")

#: Statements that make jobs final and need no `carry_on` beside them, and why.
EXCEPTIONS = {
    "finish._SUCCEED": "a task's return has what follows it in its outbox",
    "ended._INSERT_ENDED": "it is what `carry_on` does, and `insert_ended` goes on from it",
    "insert._FILL_AWAITED": "it queues or schedules, by the message's countdown",
}
#: Those that are known; so that a search that finds nothing is noticed.
KNOWN = {"finish._FINISH", "change._CANCEL", "bulk._CANCEL", "retention._EXPIRE", "rescue._TAKE"}


def makes_final(sql: str) -> bool:
    """Whether a statement sets a job's state to what is final, or may be."""
    return any(
        not _NOT_FINAL.match(value.group(1))
        for clause in _SETS.finditer(sql)
        for value in _STATE.finditer(clause.group(1))
    )


def text_of(node: ast.AST) -> str:
    """The text of every string in `node`."""
    parts = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
    return " ".join(part for part in parts if isinstance(part, str))


def names_in(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def final_statements(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and makes_final(text_of(node)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def users_of(tree: ast.Module, name: str) -> Iterator[ast.FunctionDef]:
    """The outermost functions that name a statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.Module):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and name in names_in(item):
                    yield item


def forgetful(path: Path) -> Iterator[str]:
    """Each function of a module that makes jobs final and does not carry on."""
    tree = ast.parse(path.read_text())
    statements = [n for n in final_statements(tree) if f"{path.stem}.{n}" not in EXCEPTIONS]
    for name in statements:
        for function in users_of(tree, name):
            if "carry_on" not in names_in(function):
                yield f"{path.stem}.{function.name} by {name}"
    for node in ast.walk(tree):  # a statement that stands in a function
        if isinstance(node, ast.FunctionDef) and makes_final(text_of(node)):
            yield from () if "carry_on" in names_in(node) else (f"{path.stem}.{node.name}",)


def modules() -> list[Path]:
    return [path for path in LEDGER.rglob("*.py") if "migrations" not in path.parts]


def test_every_final_move_carries_what_follows_it() -> None:
    assert [found for path in modules() for found in forgetful(path)] == []


def test_the_final_moves_are_found() -> None:
    found = {
        f"{path.stem}.{name}"
        for path in modules()
        for name in final_statements(ast.parse(path.read_text()))
    }

    assert found >= KNOWN | set(EXCEPTIONS)


def test_a_final_move_that_forgets_is_found(tmp_path: Path) -> None:
    module = tmp_path / "purge.py"
    module.write_text(
        '''
_PURGE = text("""
    UPDATE ledger.jobs SET error = :reason, state = 'cancelled', lease = NULL WHERE queue = :queue
""")
_RELEASE = text("UPDATE ledger.jobs SET state = 'queued' WHERE id = :id AND state = 'failed'")
def purge(connection): connection.execute(_PURGE)
def careful(connection): carry_on(connection, connection.execute(_PURGE))
def release(connection): connection.execute(_RELEASE)
def at_once(connection): connection.execute("UPDATE jobs SET state = 'failed' WHERE id = 'a'")
'''
    )

    assert list(forgetful(module)) == ["purge.purge by _PURGE", "purge.at_once"]
