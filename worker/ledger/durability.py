"""Prove that Postgres keeps what it acknowledges."""

from __future__ import annotations

from sqlalchemy import text

from worker.errors import LedgerUnavailable
from worker.ledger.database import Ledger
from worker.ledger.faults import TAKES_NO_WRITES
from worker.ledger.safety import JUDGED, faults_of, trusted

_SHOW = text("SELECT name, setting FROM pg_settings WHERE name = ANY(CAST(:names AS text[]))")
_MENDED = text("SELECT setting, reset_val FROM pg_settings WHERE name = 'synchronous_commit'")
_READ_ONLY = text("SELECT current_setting('transaction_read_only') = 'on' AS is_so")
_VERSION = text("SELECT current_setting('server_version_num')::int / 10000 AS version")


def durability_faults(ledger: Ledger, *, trusts_storage: bool = False) -> list[str]:
    """One sentence for each setting of Postgres that lets an acknowledged job be lost.

    What the ledger's own sessions set is no fault.

    Args:
        ledger: one that `bears_unsafe`; another one is refused before it can be asked.
        trusts_storage: as `Ledger` has it; then no fault is what `vouched_for` tells.

    Raises:
        Unavailable: Postgres is away.
    """
    rows = ledger.rows(_SHOW, {"names": list(JUDGED)})
    found = {row.name: row.setting for row in rows}
    faults = faults_of(found, trusts_storage=trusts_storage)
    version = server_version(ledger)
    if not 15 <= version <= 18:
        faults.append(f"Postgres {version} is not tested; use 15 to 18.")
    return faults


def vouched_for(ledger: Ledger) -> str | None:
    """A sentence on what is no fault only because the operator trusts the storage."""
    rows = ledger.rows(_SHOW, {"names": list(JUDGED)})
    return trusted({row.name: row.setting for row in rows})


def require_writes(ledger: Ledger) -> None:
    """Return if this Postgres takes writes.

    Raises:
        Unavailable: it is a standby, or set read-only; or it is away.
    """
    (row,) = ledger.rows(_READ_ONLY)
    if row.is_so:
        raise LedgerUnavailable(TAKES_NO_WRITES)


def mended(ledger: Ledger) -> str | None:
    """A sentence on what this service's own sessions set, because the server would do less."""
    (row,) = ledger.rows(_MENDED)
    if row.setting == row.reset_val:
        return None
    return (
        f"Postgres has synchronous_commit = {row.reset_val}; every session of this service sets it"
        f" to {row.setting}."
    )


def server_version(ledger: Ledger) -> int:
    """The server's major version."""
    (row,) = ledger.rows(_VERSION)
    return int(row.version)
