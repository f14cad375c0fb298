"""Revoke a job that may not have been sent yet, durably."""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import text

from worker.errors import NotFound
from worker.jobs.ids import checked_id
from worker.ledger.change import cancel
from worker.ledger.database import Ledger
from worker.ledger.guards import REVOKED

# Final from the start, as the later steps of a failed chain; its fingerprint says that no message
# shall ever fill it.
_REVOKE_UNSENT = text("""
    INSERT INTO ledger.jobs (id, task, queue, list, priority, state, fingerprint, envelope, body,
                             error, finished_at)
    VALUES (:id, 'unknown', '', '', 0, 'cancelled', :mark, '{}', '', :reason, clock_timestamp())
    ON CONFLICT DO NOTHING
    RETURNING id
""")


def revoke(ledger: Ledger, job_id: str, reason: str, *, running: bool) -> None:
    """Cancel a job; one that was not sent yet is cancelled when it is.

    Args:
        ledger: where.
        job_id: which.
        reason: kept as the job's error.
        running: whether one that runs already is cancelled too.

    Raises:
        MalformedId: no job can have this id.
        Conflict: it has ended already, or runs and may not be cancelled.
        Unavailable: Postgres is away.
    """
    with suppress(NotFound):
        cancel(ledger, job_id, reason, running=running)
        return
    values = {"id": checked_id(job_id), "mark": REVOKED, "reason": reason}
    if not ledger.rows(_REVOKE_UNSENT, values):
        cancel(ledger, job_id, reason, running=running)  # it was sent meanwhile
