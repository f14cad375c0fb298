"""Steps of Postgres's clock: move back what waits since a time that lies in the future now.

A waiting job keeps the moment from which its times count, `dispatched_at`. If that moment lies
ahead, the clock has stepped back since, by that much at least, and the job's `run_at` and
`expires_at` are moved back by as much. So a countdown counts anew from the step at the worst: it is
late by less than itself, and by less than the step. The same holds for what expires.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

from worker.ledger.database import Ledger
from worker.ledger.guards import QUEUED, SCHEDULED, is_ahead
from worker.ledger.leader import Leadership

#: Jobs moved in one transaction.
BATCH: Final = 1000

# Each state in the order of an index of its own: no row that has ended is read.
_MOVE_BACK = text(f"""
    WITH scheduled AS MATERIALIZED (
        SELECT id FROM ledger.jobs WHERE state = 'scheduled' AND {is_ahead("dispatched_at")}
        ORDER BY run_at LIMIT :batch
        FOR UPDATE SKIP LOCKED
    ), queued AS MATERIALIZED (
        SELECT id FROM ledger.jobs WHERE state = 'queued' AND {is_ahead("dispatched_at")}
        ORDER BY list, dispatch_seq LIMIT :batch
        FOR UPDATE SKIP LOCKED
    ), ahead AS MATERIALIZED (
        SELECT id FROM scheduled UNION ALL SELECT id FROM queued
    )
    UPDATE ledger.jobs
    SET run_at = CASE WHEN jobs.state = 'scheduled' AND isfinite(run_at)
                      THEN run_at - (dispatched_at - statement_timestamp()) ELSE run_at END,
        expires_at = expires_at - (dispatched_at - statement_timestamp()),
        dispatched_at = statement_timestamp()
    FROM ahead
    WHERE jobs.id = ahead.id AND (jobs.state = {QUEUED} OR jobs.state = {SCHEDULED})
      AND {is_ahead("jobs.dispatched_at")}
""")  # noqa: S608 -- constants of the ledger


def move_back(ledger: Ledger, leadership: Leadership | None) -> int:
    """Move back the times of up to two batches of waiting jobs; how many were moved.

    Raises:
        LeaseLost: `leadership` is no longer held.
        Unavailable: Postgres is away.
    """

    def work(connection: Connection) -> int:
        if leadership is not None:
            leadership.check(connection)
        return connection.execute(_MOVE_BACK, {"batch": BATCH}).rowcount

    return ledger.run(work)
