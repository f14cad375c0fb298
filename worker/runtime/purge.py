"""Purge a queue as Celery means it: what waits there does not run any more."""

from __future__ import annotations

from typing import Final

from worker.flows.bulk import cancel_many
from worker.jobs.states import State
from worker.ledger.bulk import Selection, selected
from worker.ledger.database import Ledger

#: What a purged job's error says.
REASON: Final = "purged with its queue"


def purge(ledger: Ledger, queue: str) -> int:
    """Cancel every job that waits in `queue`, for a worker or for its time; how many.

    What runs goes on, and so do jobs that wait for other jobs: those are told by these.

    Raises:
        Unavailable: Postgres is away; what was cancelled until then stays so.
    """
    return cancel_many(ledger, _waiting_in(queue), REASON)


def holds(ledger: Ledger, queue: str) -> bool:
    """Whether a job waits in `queue`, for a worker or for its time.

    Raises:
        Unavailable: Postgres is away.
    """
    return any(ids for _, ids in selected(ledger, _waiting_in(queue)))


def _waiting_in(queue: str) -> Selection:
    return Selection((State.SCHEDULED, State.QUEUED), queue=queue, parked=False)
