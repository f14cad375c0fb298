"""Replay a failed or cancelled job."""

from __future__ import annotations

from worker.broker.doorbells import Doorbells
from worker.flows.ring import ring
from worker.ledger import change
from worker.ledger.database import Ledger


def replay(ledger: Ledger, doorbells: Doorbells, job_id: str) -> None:
    """Queue the job again and ring for it.

    Raises:
        NotFound: no job has this id.
        Conflict: it is not failed or cancelled.
        Unavailable: Postgres is away.
    """
    ring(doorbells, [change.replay(ledger, job_id)])
