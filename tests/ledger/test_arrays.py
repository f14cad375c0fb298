"""Array literals: what Postgres reads of them is what was written."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from sqlalchemy import text

from worker.jobs.states import State
from worker.ledger.arrays import Value, literal
from worker.ledger.database import Ledger

#: What Postgres can hold: no NUL, no lone surrogate.
TEXTS = some.text(some.characters(exclude_characters="\0", exclude_categories=["Cs"]))


class Level(IntEnum):
    LOW = 9


class Quoted(str):
    """A text that means something else by `replace`, as markupsafe's does."""

    def replace(self, *_: object) -> Quoted:
        return self


#: Nothing is written: one ledger does for every example.
ONE_LEDGER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text", ["", "NULL", "null", '"', "\\", '\\"', "{", "}", ",", " a ", "'", "é", None]),
        ("text", ["same", "same"]),
        ("text", []),
        ("bytea", [b"", b"\\x", bytes(range(256)), None]),
        ("int", [1, -1, None]),
        ("text", [Quoted('a","b'), Quoted("c"), State.QUEUED]),
        ("bytea", [bytearray(b"a"), memoryview(b"b")]),
        ("int", [Level.LOW, 2, True]),
        ("float8", [0.1, 1e300, float("inf"), None]),
    ],
)
def test_a_column_is_read_as_it_was_written(ledger: Ledger, kind: str, values: list[Value]) -> None:
    assert read(ledger, kind, values) == values


def test_what_no_column_holds_is_a_fault_of_ours() -> None:
    with pytest.raises(TypeError, match="dict"):
        literal([{}])  # type: ignore[list-item] # what is tested


@ONE_LEDGER
@given(some.lists(TEXTS | some.none()))
def test_texts_are_read_as_they_were_written(ledger: Ledger, values: list[str | None]) -> None:
    assert read(ledger, "text", values) == values


@ONE_LEDGER
@given(some.lists(some.binary() | some.none()))
def test_bytes_are_read_as_they_were_written(ledger: Ledger, values: list[bytes | None]) -> None:
    assert read(ledger, "bytea", values) == values


def read(ledger: Ledger, kind: str, values: Sequence[Value]) -> list[object]:
    statement = text(f"SELECT value FROM unnest(CAST(:values AS {kind}[])) AS found (value)")
    rows = ledger.rows(statement, {"values": literal(values)})
    return [bytes(row.value) if isinstance(row.value, memoryview) else row.value for row in rows]
