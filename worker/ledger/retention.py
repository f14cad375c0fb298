"""Drop what is past its time, in batches that block nobody."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, TextClause, text

from worker.jobs.job import Ring
from worker.ledger.continuations import carry_on
from worker.ledger.database import Ledger
from worker.ledger.leader import Leadership

#: Rows deleted in one transaction.
BATCH = 1000

_DROP_SUCCEEDED, _DROP_ENDED_BADLY = (
    text(f"""
        WITH old AS MATERIALIZED (
            SELECT id FROM ledger.jobs
            WHERE {states} AND finished_at < statement_timestamp() - :days * interval '1 day'
            ORDER BY finished_at LIMIT :batch
            FOR UPDATE SKIP LOCKED
        )
        DELETE FROM ledger.jobs USING old WHERE jobs.id = old.id
    """)  # noqa: S608 -- constants below
    for states in ("state = 'succeeded'", "state IN ('failed', 'cancelled')")
)

_DROP_GROUPS = text("""
    WITH old AS MATERIALIZED (
        SELECT id FROM ledger.groups
        WHERE created_at < statement_timestamp() - :days * interval '1 day'
        ORDER BY created_at LIMIT :batch
        FOR UPDATE SKIP LOCKED
    )
    DELETE FROM ledger.groups USING old WHERE groups.id = old.id
""")

_EXPIRE = text("""
    WITH late AS MATERIALIZED (
        SELECT id,
            state = 'scheduled' OR dispatched_at > expires_at - interval '1 second' AS unheard
        FROM ledger.jobs
        WHERE state IN ('scheduled', 'queued') AND expires_at IS NOT NULL
          AND expires_at < statement_timestamp()
        ORDER BY expires_at LIMIT :batch
        FOR UPDATE SKIP LOCKED
    )
    UPDATE ledger.jobs
    SET state = 'cancelled', error = 'expired before it was started',
        finished_at = clock_timestamp(), lease = NULL, run_at = NULLIF(run_at, 'infinity')
    FROM late WHERE jobs.id = late.id
      AND (jobs.state = (SELECT 'queued') OR jobs.state = (SELECT 'scheduled'))
    RETURNING jobs.id, jobs.list, late.unheard
""")


@dataclass(frozen=True, slots=True)
class Expired:
    """Jobs that were not started in their time.

    Attributes:
        count: how many were cancelled.
        rings: doorbells for those that have none, or one that may be popped already. A worker that
            pops such a doorbell is denied the job, and sends `task_revoked`.
    """

    count: int
    rings: list[Ring]


def drop_old(
    ledger: Ledger,
    leadership: Leadership | None,
    *,
    succeeded_days: float,
    failed_days: float,
    batch: int | None = None,
) -> int:
    """Delete a batch of each kind of finished job past its age; how many jobs were deleted.

    Each kind in a transaction of its own: while one is open nobody can take the lead or extend it.

    Args:
        ledger: where.
        leadership: checked inside each transaction.
        succeeded_days, failed_days: what is kept, of each kind and of saved groups.
        batch: rows of each kind, at most; `None` for `BATCH`.

    Raises:
        LeaseLost: `leadership` is no longer held.
        NotDone: so many could not be deleted in time; fewer may be.
        Unavailable: Postgres is away.
    """

    def drop(statement: TextClause, days: float) -> int:
        def work(connection: Connection) -> int:
            if leadership is not None:
                leadership.check(connection)
            parameters = {"days": days, "batch": batch or BATCH}
            return connection.execute(statement, parameters).rowcount

        return ledger.run(work)

    dropped = drop(_DROP_SUCCEEDED, succeeded_days) + drop(_DROP_ENDED_BADLY, failed_days)
    drop(_DROP_GROUPS, succeeded_days)
    return dropped


def expire_late(ledger: Ledger, leadership: Leadership | None) -> Expired:
    """Cancel up to a batch of waiting jobs past their `expires`.

    What was to follow one is cancelled with it, and not counted.
    """

    def work(connection: Connection) -> Expired:
        if leadership is not None:
            leadership.check(connection)
        rows = connection.execute(_EXPIRE, {"batch": BATCH}).all()
        carry_on(connection, [row.id for row in rows])
        return Expired(len(rows), [Ring(row.id, row.list, 0) for row in rows if row.unheard])

    return ledger.run(work)
