"""Purge a queue as Celery means it: what waits there does not run any more."""

from __future__ import annotations

from typing import Final

from worker.flows.bulk import cancel_many
from worker.jobs.states import State
from worker.ledger.bulk import Selection
from worker.ledger.database import Ledger

#: What a purged job's error says.
REASON: Final = "purged with its queue"


def purge(ledger: Ledger, queue: str) -> int:
    """Cancel every job that waits in `queue`, for a worker or for its time; how many.

    What runs goes on, and so do jobs that wait for other jobs: those are told by these.

    Raises:
        Unavailable: Postgres is away; what was cancelled until then stays so.
    """
    waiting = Selection((State.SCHEDULED, State.QUEUED), queue=queue, parked=False)
    return cancel_many(ledger, waiting, REASON)
