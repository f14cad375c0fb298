"""The audit: every move of a job and every turn of a lease, written down by Postgres itself.

Triggers, so that no code under test can move a job unseen; statement-level with transition tables,
so that a batch of hundreds costs one more INSERT. The tables are logged: Postgres is killed too.

Like the checker, this module imports nothing of `worker`.
"""

from __future__ import annotations

import sys
from typing import Final

import psycopg2

_TABLES: Final = """
    CREATE TABLE IF NOT EXISTS audit_moves (
        n bigserial,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        by text NOT NULL DEFAULT current_setting('application_name'),
        job text COLLATE "C" NOT NULL,
        old_state text, new_state text,         -- null: the row was inserted, or deleted
        old_attempt int, new_attempt int,
        old_lease text COLLATE "C", new_lease text COLLATE "C",
        old_worker text, new_worker text,
        new_lost int,
        changed boolean NOT NULL                -- the result or the error
    );
    CREATE TABLE IF NOT EXISTS audit_leases (
        n bigserial,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        by text NOT NULL DEFAULT current_setting('application_name'),
        what text NOT NULL,                     -- open, renew, end
        lease text COLLATE "C" NOT NULL,
        name text NOT NULL,
        isolated boolean NOT NULL,
        renewed_at timestamptz, expires_at timestamptz
    );
"""

_MOVE: Final = (
    "job, old_state, new_state, old_attempt, new_attempt, old_lease, new_lease, old_worker,"
    " new_worker, new_lost, changed"
)
_LEASE: Final = "what, lease, name, isolated, renewed_at, expires_at"

# What each trigger appends: of which table, at what, into which table and columns, from which rows.
_RECORDS: Final = (
    (
        "jobs",
        "INSERT",
        f"audit_moves ({_MOVE})",
        """
        SELECT id, NULL, state, NULL, attempt, NULL, lease, NULL, worker, lost,
               result IS NOT NULL OR error IS NOT NULL
        FROM after
        """,
    ),
    (
        "jobs",
        "UPDATE",
        f"audit_moves ({_MOVE})",
        # A ring or a word of progress is no move: it leaves all of these as they are.
        """
        SELECT id, b.state, a.state, b.attempt, a.attempt, b.lease, a.lease, b.worker, a.worker,
               a.lost, b.result IS DISTINCT FROM a.result OR b.error IS DISTINCT FROM a.error
        FROM before b JOIN after a USING (id)
        WHERE b.state <> a.state OR b.attempt <> a.attempt OR b.lost <> a.lost
           OR b.lease IS DISTINCT FROM a.lease OR b.error IS DISTINCT FROM a.error
           OR b.result IS DISTINCT FROM a.result
        """,
    ),
    (
        "jobs",
        "DELETE",
        f"audit_moves ({_MOVE})",
        """
        SELECT id, state, NULL, attempt, NULL, lease, NULL, worker, NULL, NULL, false FROM before
        """,
    ),
    (
        "workers",
        "INSERT",
        f"audit_leases ({_LEASE})",
        "SELECT 'open', lease, name, isolated, renewed_at, expires_at FROM after",
    ),
    (
        "workers",
        "UPDATE",
        f"audit_leases ({_LEASE})",
        """
        SELECT 'renew', lease, a.name, a.isolated, a.renewed_at, a.expires_at
        FROM before b JOIN after a USING (lease)
        WHERE b.renewed_at <> a.renewed_at OR b.expires_at <> a.expires_at
        """,
    ),
    (
        "workers",
        "DELETE",
        f"audit_leases ({_LEASE})",
        "SELECT 'end', lease, name, isolated, renewed_at, expires_at FROM before",
    ),
)

_SEEN: Final = {
    "INSERT": "NEW TABLE AS after",
    "UPDATE": "OLD TABLE AS before NEW TABLE AS after",
    "DELETE": "OLD TABLE AS before",
}


def dsn(url: str) -> str:
    """The address as psycopg2 takes it, from one as the ledger or an operator writes it."""
    return url.replace("postgresql+psycopg2://", "postgresql://", 1)


def install(url: str) -> None:
    """Put the audit's tables and triggers into a migrated database; again does no harm.

    Raises:
        psycopg2.Error: Postgres is away, or the database has no jobs.
    """
    connection = psycopg2.connect(dsn(url), application_name="chaos audit")
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(_TABLES)
            for table, event, target, rows in _RECORDS:
                cursor.execute(_trigger(table, event, target, rows))
    finally:
        connection.close()


def _trigger(table: str, event: str, target: str, rows: str) -> str:
    name = f"audit_{table}_{event.lower()}"
    return f"""
        CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO {target} {rows};
            RETURN NULL;
        END $$;
        CREATE OR REPLACE TRIGGER {name} AFTER {event} ON ledger.{table} REFERENCING {_SEEN[event]}
            FOR EACH STATEMENT EXECUTE FUNCTION {name}();
    """


if __name__ == "__main__":
    install(sys.argv[1])
