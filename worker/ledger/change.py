"""What people do to a job from outside: cancel it, replay it, forget its result."""

from __future__ import annotations

from sqlalchemy import Connection, text

from worker.errors import Conflict, NotFound
from worker.jobs.job import Ring
from worker.ledger.continuations import carry_on
from worker.ledger.database import Ledger

_CANCEL = text("""
    WITH locked AS MATERIALIZED (
        SELECT id, state AS was, lease AS held_by FROM ledger.jobs
        WHERE id = :id AND (state IN ('scheduled', 'queued') OR state = 'running' AND :running)
        FOR UPDATE
    ), moved AS (
        UPDATE ledger.jobs
        SET state = 'cancelled', error = :reason, finished_at = clock_timestamp(), lease = NULL,
            run_at = NULLIF(run_at, 'infinity')
        FROM locked WHERE jobs.id = locked.id
        RETURNING jobs.id, jobs.attempt, jobs.worker, jobs.started_at, locked.was, locked.held_by
    ), noted AS (
        INSERT INTO ledger.attempts (job_id, number, outcome, lease, worker, started_at, error)
        SELECT id, attempt, 'cancelled', held_by, worker, started_at, :reason FROM moved
        WHERE was = 'running'
        ON CONFLICT DO NOTHING
    )
    SELECT id FROM moved
""")

_REPLAY = text("""
    UPDATE ledger.jobs
    SET state = 'queued', lost = 0, suspicion = 0, lease = NULL, result = NULL,
        result_type = NULL, children = NULL, error = NULL, traceback = NULL, finished_at = NULL,
        progress = NULL, progress_state = NULL, expires_at = NULL, run_at = NULL,
        dispatch_seq = nextval('ledger.dispatch_seq'), dispatched_at = clock_timestamp(), rings = 1
    WHERE id = :id AND state IN ('failed', 'cancelled') AND list <> ''
    RETURNING id, list, dispatch_seq
""")

_FORGET = text("""
    UPDATE ledger.jobs SET result = NULL, result_type = NULL, traceback = NULL, children = NULL
    WHERE id = :id AND state IN ('succeeded', 'failed', 'cancelled')
""")

# Postgres gives no number twice: a job that waits or runs under ours was queued by us.
_REPLAYED = text(
    "SELECT id, list, dispatch_seq FROM ledger.jobs WHERE id = :id AND dispatch_seq = :seq"
)

# With the job to replay instead, whose end ended it too.
_NEVER_ENQUEUED = text("""
    SELECT before.id AS before FROM ledger.jobs
    LEFT JOIN ledger.jobs before ON before.id = jobs.parent_id AND before.list <> ''
        AND before.state IN ('failed', 'cancelled')
    WHERE jobs.id = :id AND jobs.list = '' AND jobs.state IN ('failed', 'cancelled')
""")

_STATE = text("SELECT state FROM ledger.jobs WHERE id = :id")


def cancel(ledger: Ledger, job_id: str, reason: str, *, running: bool = True) -> None:
    """Cancel a job that has not ended; a running one is cancelled at once, its finish is stale.

    What was to follow it, as the later steps of its chain, is cancelled with it.

    Args:
        ledger: where.
        job_id: which.
        reason: kept as the job's error.
        running: whether one that runs already is cancelled too.

    Raises:
        NotFound: no job has this id.
        Conflict: it has ended already, or runs and may not be cancelled.
        Unavailable: Postgres is away.
    """

    def work(connection: Connection) -> None:
        parameters = {"id": job_id, "reason": reason, "running": running}
        if connection.execute(_CANCEL, parameters).first() is not None:
            carry_on(connection, [job_id])
        else:
            state = _state(connection, job_id)
            if state != "cancelled":  # repeating a cancel is no fault
                raise Conflict(
                    f"Job {job_id} has {state} already; only a waiting or running job"
                    " can be cancelled."
                )

    ledger.run(work)


def replay(ledger: Ledger, job_id: str) -> Ring:
    """Queue a failed or cancelled job again, with its history kept; its doorbell is yet to ring.

    A commit whose reply was lost is found by its dispatch number, and is no conflict.

    Raises:
        NotFound: no job has this id.
        Conflict: it is not failed or cancelled, or was never enqueued.
        Unavailable: Postgres is away.
    """

    tried: list[int] = []

    def work(connection: Connection) -> Ring:
        row = connection.execute(_REPLAY, {"id": job_id}).first()
        if row is None and tried:
            row = connection.execute(_REPLAYED, {"id": job_id, "seq": tried[-1]}).first()
        if row is None:
            raise _not_replayable(connection, job_id)
        tried.append(row.dispatch_seq)
        return Ring(*row)

    return ledger.run(work)


def forget(ledger: Ledger, job_id: str) -> None:
    """Drop the result of a job that has ended; that it ended, and how, stays known."""
    ledger.rows(_FORGET, {"id": job_id})


def _not_replayable(connection: Connection, job_id: str) -> Conflict:
    row = connection.execute(_NEVER_ENQUEUED, {"id": job_id}).first()
    if row is None:
        return Conflict(
            f"Job {job_id} is {_state(connection, job_id)}; only a failed or cancelled job can be"
            " replayed."
        )
    never = f"Job {job_id} was never enqueued, so there is nothing to replay"
    if row.before is None:
        return Conflict(f"{never}; start the chain or chord that it belongs to again.")
    return Conflict(
        f"{never}; replay job {row.before}, which it was to follow: its success brings this one."
    )


def _state(connection: Connection, job_id: str) -> str:
    row = connection.execute(_STATE, {"id": job_id}).first()
    if row is None:
        raise NotFound(job_id)
    return str(row.state)
