"""Drop what is past its time, in batches that block nobody."""

from __future__ import annotations

from sqlalchemy import Connection, text

from worker.ledger.database import Ledger
from worker.ledger.leader import Leadership

#: Rows deleted in one transaction.
BATCH = 1000

_DROP = {
    states: text(f"""
        WITH old AS MATERIALIZED (
            SELECT id FROM jobs
            WHERE {states} AND finished_at < clock_timestamp() - :days * interval '1 day'
            ORDER BY finished_at LIMIT :batch
            FOR UPDATE SKIP LOCKED
        )
        DELETE FROM jobs USING old WHERE jobs.id = old.id
    """)  # noqa: S608 -- constants below
    for states in ("state = 'succeeded'", "state IN ('failed', 'cancelled')")
}

_DROP_GROUPS = text("""
    DELETE FROM groups WHERE id IN (
        SELECT id FROM groups WHERE created_at < clock_timestamp() - :days * interval '1 day'
        LIMIT :batch)
""")

_EXPIRE = text("""
    WITH late AS MATERIALIZED (
        SELECT id FROM jobs
        WHERE state IN ('scheduled', 'queued') AND expires_at IS NOT NULL
          AND expires_at < clock_timestamp()
        ORDER BY expires_at LIMIT :batch
        FOR UPDATE SKIP LOCKED
    )
    UPDATE jobs
    SET state = 'cancelled', error = 'expired before it was started',
        finished_at = clock_timestamp(), lease = NULL
    FROM late WHERE jobs.id = late.id AND jobs.state IN ('scheduled', 'queued')
""")


def drop_old(
    ledger: Ledger,
    leadership: Leadership | None,
    *,
    succeeded_days: float,
    failed_days: float,
) -> int:
    """Delete up to one batch of each kind of finished job past its age; how many were deleted."""

    def work(connection: Connection) -> int:
        if leadership is not None:
            leadership.check(connection)
        days = (succeeded_days, failed_days)
        dropped = sum(
            connection.execute(statement, {"days": age, "batch": BATCH}).rowcount
            for statement, age in zip(_DROP.values(), days, strict=True)
        )
        connection.execute(_DROP_GROUPS, {"days": succeeded_days, "batch": BATCH})
        return dropped

    return ledger.run(work)


def expire_late(ledger: Ledger, leadership: Leadership | None) -> int:
    """Cancel up to a batch of waiting jobs past their `expires`; how many were cancelled."""

    def work(connection: Connection) -> int:
        if leadership is not None:
            leadership.check(connection)
        return connection.execute(_EXPIRE, {"batch": BATCH}).rowcount

    return ledger.run(work)
