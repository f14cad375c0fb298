"""Array literals: what Postgres reads of them is what was written."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from sqlalchemy import text

from worker.ledger.arrays import literal
from worker.ledger.database import Ledger

#: What Postgres can hold: no NUL, no lone surrogate.
TEXTS = some.text(some.characters(exclude_characters="\0", exclude_categories=["Cs"]))
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
        ("float8", [0.1, 1e300, float("inf"), None]),
    ],
)
def test_a_column_is_read_as_it_was_written(
    ledger: Ledger, kind: str, values: list[str | bytes | float | None]
) -> None:
    assert read(ledger, kind, values) == values


@ONE_LEDGER
@given(some.lists(TEXTS | some.none()))
def test_texts_are_read_as_they_were_written(ledger: Ledger, values: list[str | None]) -> None:
    assert read(ledger, "text", values) == values


@ONE_LEDGER
@given(some.lists(some.binary() | some.none()))
def test_bytes_are_read_as_they_were_written(ledger: Ledger, values: list[bytes | None]) -> None:
    assert read(ledger, "bytea", values) == values


def read(ledger: Ledger, kind: str, values: Sequence[str | bytes | float | None]) -> list[object]:
    statement = text(f"SELECT value FROM unnest(CAST(:values AS {kind}[])) AS found (value)")
    rows = ledger.rows(statement, {"values": literal(values)})
    return [bytes(row.value) if isinstance(row.value, memoryview) else row.value for row in rows]
