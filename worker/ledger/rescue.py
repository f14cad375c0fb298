"""Rescue: take the jobs of workers whose lease expired, and judge what keeps killing them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from worker.ledger.database import Ledger
from worker.ledger.leader import Leadership

#: Jobs rescued in one transaction.
BATCH = 1000

_EXPIRE = text("""
    DELETE FROM workers WHERE lease IN (
        SELECT lease FROM workers WHERE expires_at < clock_timestamp()
        ORDER BY lease LIMIT 100
        FOR UPDATE SKIP LOCKED)
    RETURNING lease
""")

# A second statement with a snapshot of its own: it finds what was claimed until the lease row was
# gone, and sweeps what runs under no lease row at all (PROTOCOL 6). A loss counts only where the
# job was alone in its process, and only one process was lost: a dying node accuses nobody. The
# guard stands twice: a row that was waited for may be the next attempt's, under a lease too new for
# this statement to see.
_TAKE = text("""
    WITH orphans AS MATERIALIZED (
        SELECT id FROM jobs
        WHERE state = 'running'
          AND NOT EXISTS (SELECT FROM workers WHERE workers.lease = jobs.lease)
        ORDER BY id LIMIT :batch
        FOR UPDATE
    ), together AS MATERIALIZED (
        SELECT lease, count(*) AS held FROM jobs
        WHERE state = 'running' AND lease IN (SELECT j.lease FROM jobs j JOIN orphans USING (id))
        GROUP BY lease
    ), judged AS MATERIALIZED (
        SELECT j.id, j.lease, j.attempt, j.worker, j.started_at, t.held,
               j.lost + CASE WHEN t.held = 1 AND :counts THEN 1 ELSE 0 END AS lost
        FROM jobs j JOIN orphans USING (id) JOIN together t ON t.lease = j.lease
    ), moved AS (
        UPDATE jobs
        SET lost = judged.lost,
            suspect = judged.lost < :limit,
            state = CASE WHEN judged.lost >= :limit THEN 'failed' ELSE 'queued' END,
            error = CASE WHEN judged.lost >= :limit
                         THEN format('poison: %s attempts were lost with their process',
                                     judged.lost) END,
            finished_at = CASE WHEN judged.lost >= :limit THEN clock_timestamp() END,
            lease = NULL,
            dispatch_seq = nextval('dispatch_seq'), dispatched_at = clock_timestamp(), rings = 1
        FROM judged
        WHERE jobs.id = judged.id AND jobs.state = 'running'
          AND jobs.lease = judged.lease AND jobs.attempt = judged.attempt
        RETURNING jobs.id, jobs.state
    ), noted AS (
        INSERT INTO attempts (job_id, number, outcome, lease, worker, started_at, error)
        SELECT judged.id, judged.attempt, 'lost', judged.lease, judged.worker, judged.started_at,
               format('the worker stopped renewing its lease while it held %s job(s)', judged.held)
        FROM judged JOIN moved USING (id)
        ON CONFLICT DO NOTHING
    )
    SELECT id, state FROM moved
""")

# A worker that has missed a renewal, and dies too perhaps: then it is a node that goes.
_FALTERING = text("""
    SELECT EXISTS (
        SELECT FROM workers
        WHERE clock_timestamp() - renewed_at > (expires_at - renewed_at) / 2)
""")

_UPTIME = text("""
    SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time()) AS up
""")


@dataclass(frozen=True, slots=True)
class Rescued:
    """What one rescue did.

    Attributes:
        leases: how many expired leases were ended.
        queued: ids that run again, as suspects.
        poisoned: ids that reached the limit and are failed.
        full: whether there may be more.
    """

    leases: int
    queued: tuple[str, ...]
    poisoned: tuple[str, ...]
    full: bool


def rescue(
    ledger: Ledger, leadership: Leadership | None, limit: int, *, accuse: bool = True
) -> Rescued:
    """End expired leases and queue their jobs again; fail those lost `limit` times while alone.

    Args:
        ledger: where.
        leadership: checked inside the transaction.
        limit: losses that make a job poison.
        accuse: False when another lease expired a moment ago: no loss counts.

    Raises:
        LeaseLost: `leadership` is no longer held.
        Unavailable: Postgres is away.
    """

    def work(connection: Connection) -> Rescued:
        if leadership is not None:
            leadership.check(connection)
        expired = list(connection.execute(_EXPIRE))
        counts = accuse and len(expired) == 1 and not connection.execute(_FALTERING).scalar()
        parameters = {"counts": counts, "limit": limit, "batch": BATCH}
        rows = list(connection.execute(_TAKE, parameters))
        queued = tuple(row.id for row in rows if row.state == "queued")
        poisoned = tuple(row.id for row in rows if row.state == "failed")
        return Rescued(len(expired), queued, poisoned, len(rows) == BATCH)

    return ledger.run(work)


def uptime(ledger: Ledger) -> float:
    """Seconds since Postgres started: right after a restart nobody can have renewed."""
    (row,) = ledger.rows(_UPTIME)
    return float(row.up)
