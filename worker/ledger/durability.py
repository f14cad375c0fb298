"""Prove that Postgres keeps what it acknowledges."""

from __future__ import annotations

from sqlalchemy import text

from worker.ledger.database import Ledger

#: What each setting must not be, and why.
_UNSAFE = {
    "fsync": ({"off"}, "a crash of the machine loses or corrupts committed jobs"),
    "full_page_writes": ({"off"}, "a crash of the machine can corrupt committed jobs"),
    "synchronous_commit": ({"off", "local_off"}, "an acknowledged commit can be lost"),
}
_SHOW = text("SELECT name, setting FROM pg_settings WHERE name = ANY(CAST(:names AS text[]))")
_VERSION = text("SELECT current_setting('server_version_num')::int / 10000 AS version")


def durability_faults(ledger: Ledger) -> list[str]:
    """One sentence for each setting of Postgres that lets an acknowledged job be lost.

    Raises:
        Unavailable: Postgres is away.
    """
    rows = ledger.rows(_SHOW, {"names": list(_UNSAFE)})
    found = {row.name: row.setting for row in rows}
    version = server_version(ledger)
    faults = [
        f"Postgres has {name} = {found[name]}: {why}; set it to on."
        for name, (unsafe, why) in _UNSAFE.items()
        if found.get(name) in unsafe
    ]
    if not 15 <= version <= 18:
        faults.append(f"Postgres {version} is not tested; use 15 to 18.")
    return faults


def server_version(ledger: Ledger) -> int:
    """The server's major version."""
    (row,) = ledger.rows(_VERSION)
    return int(row.version)
