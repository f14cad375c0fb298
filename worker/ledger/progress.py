"""What a job says of itself before it ends, and what others say of it: Celery's custom states."""

from __future__ import annotations

from sqlalchemy import text

from worker.ledger.database import Ledger
from worker.ledger.guards import RUNNING

# Whoever writes it: nobody needs the fence, because nothing is decided by it. A final job's state
# stands.
_NOTE = text("""
    UPDATE ledger.jobs SET progress = :progress, progress_state = :progress_state
    WHERE id = :id AND state NOT IN ('succeeded', 'failed', 'cancelled')
    RETURNING id
""")

# What was set before the first attempt was set from outside: a task that was told to abort before
# it began must find it.
_STARTED = text(f"""
    UPDATE ledger.jobs SET progress = :progress, progress_state = 'STARTED'
    WHERE id = :id AND state = {RUNNING} AND attempt = :attempt AND lease = :lease
      AND (attempt > 1 OR progress_state IS NULL)
""")  # noqa: S608 -- constants of the ledger


def note_from_outside(ledger: Ledger, job_id: str, progress: bytes, state: str) -> bool:
    """Keep a custom state of a job that waits or runs, whoever says it.

    Returns:
        False when there is no such job, or it has ended.

    Raises:
        Unavailable: Postgres is away.
    """
    values = {"id": job_id, "progress": progress, "progress_state": state}
    return bool(ledger.rows(_NOTE, values))


def note_started(ledger: Ledger, job_id: str, attempt: int, lease: str, progress: bytes) -> None:
    """Keep that a running attempt has started, for those who track it; a stale one's word changes
    nothing.

    Raises:
        Unavailable: Postgres is away.
    """
    values = {"id": job_id, "attempt": attempt, "lease": lease, "progress": progress}
    ledger.rows(_STARTED, values)
