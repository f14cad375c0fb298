"""Prove that Postgres keeps what it acknowledges."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import text

from worker.ledger.database import Ledger

#: What each setting must not be, and why.
_UNSAFE = {
    "fsync": ("off", "a crash of the machine loses or corrupts committed jobs"),
    "full_page_writes": ("off", "a crash of the machine can corrupt committed jobs"),
    "synchronous_commit": ("off", "an acknowledged commit can be lost"),
}
_STANDBYS = "synchronous_standby_names"
_SHOW = text("SELECT name, setting FROM pg_settings WHERE name = ANY(CAST(:names AS text[]))")
_VERSION = text("SELECT current_setting('server_version_num')::int / 10000 AS version")


def durability_faults(ledger: Ledger) -> list[str]:
    """One sentence for each setting of Postgres that lets an acknowledged job be lost.

    Raises:
        Unavailable: Postgres is away.
    """
    rows = ledger.rows(_SHOW, {"names": [*_UNSAFE, _STANDBYS]})
    faults = faults_of({row.name: row.setting for row in rows})
    version = server_version(ledger)
    if not 15 <= version <= 18:
        faults.append(f"Postgres {version} is not tested; use 15 to 18.")
    return faults


def faults_of(settings: Mapping[str, str]) -> list[str]:
    """One sentence for each of Postgres's `settings`, by name, that lets a commit be lost."""
    faults = [
        f"Postgres has {name} = {unsafe}: {why}; set it to on."
        for name, (unsafe, why) in _UNSAFE.items()
        if settings.get(name) == unsafe
    ]
    # On a single server, local is all that on can do; with standbys it is less than they promise.
    if settings.get("synchronous_commit") == "local" and settings.get(_STANDBYS):
        faults.append(
            "Postgres has synchronous_commit = local: a commit is acknowledged before a"
            " synchronous standby has it, and a failover can lose it; set it to on."
        )
    return faults


def server_version(ledger: Ledger) -> int:
    """The server's major version."""
    (row,) = ledger.rows(_VERSION)
    return int(row.version)
