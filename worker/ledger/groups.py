"""Results of groups that producers saved with `GroupResult.save()`."""

from __future__ import annotations

from sqlalchemy import text

from worker.ledger.database import Ledger

_SAVE = """
    INSERT INTO ledger.groups (id, result) VALUES (:id, :result)
    ON CONFLICT (id) DO UPDATE SET result = excluded.result
"""
_READ = text("SELECT result FROM ledger.groups WHERE id = :id")


def save_group(ledger: Ledger, group_id: str, result: bytes) -> None:
    """Keep an encoded group result."""
    ledger.execute(_SAVE, {"id": group_id, "result": result})


def read_group(ledger: Ledger, group_id: str) -> bytes | None:
    """An encoded group result, `None` when there is none."""
    found = ledger.rows(_READ, {"id": group_id})
    return bytes(found[0].result) if found else None


def delete_group(ledger: Ledger, group_id: str) -> None:
    """Drop a group result."""
    ledger.execute("DELETE FROM ledger.groups WHERE id = :id", {"id": group_id})
