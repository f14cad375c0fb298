"""Every statement names its tables with their schema: a path set by others leads none astray."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import worker
from worker.ledger.namespace import SCHEMA, VERSIONS
from worker.ledger.schema import metadata

_ROOT = Path(worker.__file__).parent
_TABLES = "|".join([*(table.name for table in metadata.tables.values()), VERSIONS])
#: What goes before a table in SQL, and no word of prose in capitals.
_BEFORE = "FROM|JOIN|INTO|UPDATE|ONLY|TABLE|USING|TRUNCATE|ANALYZE|VACUUM|INDEX ON|LOCK"
_BARE = re.compile(
    rf"\b(?:{_BEFORE})\s+(?:{_TABLES})\b(?!\.\w)"
    rf"|\b(?:FROM|USING)\s+[\w.]+(?:\s+\w+)?,\s*(?:{_TABLES})\b(?!\.)"
    rf"|\b(?:nextval|setval|currval|to_regclass)\('(?!{SCHEMA}\.)"
    rf"|'(?:{_TABLES}|dispatch_seq)'::regclass"
)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The strings of a module; of an f-string what is constant in it, in one."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (each.value if isinstance(each, ast.Constant) else "x" for each in node.values)
            yield node.lineno, "".join(map(str, parts))


def bare(text: str) -> list[str]:
    return [found.group() for found in _BARE.finditer(text)]


def test_no_statement_names_a_table_without_its_schema() -> None:
    # The migrations run with a path that leads to our schema alone.
    found = [
        f"{path.relative_to(_ROOT)}:{line}: {named}"
        for path in sorted(_ROOT.rglob("*.py"))
        if "versions" not in path.parts
        for line, text in texts(path)
        for named in bare(text)
    ]
    assert found == []


def test_every_door_is_to_the_schema_that_the_settings_name() -> None:
    found = [
        f"{path.relative_to(_ROOT)}:{node.lineno}"
        for path in sorted(_ROOT.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        and node.func.id == "Ledger" and "schema" not in {each.arg for each in node.keywords}
    ]  # fmt: skip
    assert found == []


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT id FROM jobs WHERE id = 1",
        "SELECT id FROM ledger.jobs j JOIN workers w USING (lease)",
        "UPDATE jobs SET state = 'queued'",
        "INSERT INTO\n  attempts (job_id) VALUES (1)",
        "DELETE FROM ledger.jobs USING old, queues",
        "SELECT jobs.id FROM mine, jobs",
        "SELECT FROM ledger.jobs j, workers",
        "SELECT nextval('dispatch_seq')",
        "SELECT to_regclass('alembic_version')",
        "SELECT 'jobs'::regclass",
        "ANALYZE jobs",
    ],
)
def test_a_bare_name_is_found(statement: str) -> None:
    assert bare(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger.jobs SET state = 'queued' WHERE jobs.id = 1 FOR UPDATE OF jobs",
        "SELECT nextval('ledger.dispatch_seq')",
        "WITH queue AS (SELECT 1) SELECT FROM ledger.jobs, queue",
        "worker job list shows jobs from workers",
    ],
)
def test_a_full_name_is_none(statement: str) -> None:
    assert bare(statement) == []
