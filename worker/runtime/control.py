"""`app.control`, with a revoke that nobody forgets."""

from __future__ import annotations

import logging
from typing import Any

from celery.app.control import Control

from worker.errors import Conflict, MalformedId
from worker.jobs.job import Ring
from worker.jobs.queues import list_of
from worker.jobs.states import State
from worker.ledger.read import read
from worker.ledger.revoke import revoke
from worker.runtime.install import durability_of
from worker.runtime.panel import LedgerMailbox, revoke_stamped

logger = logging.getLogger(__name__)


class LedgerControl(Control):  # type: ignore[misc] # Celery's class is not typed
    """Celery's control; a revoke is written to the ledger before it is broadcast."""

    Mailbox = LedgerMailbox

    def revoke(
        self,
        task_id: str | list[str],
        destination: Any = None,
        terminate: Any = False,
        signal: Any = "SIGTERM",
        **kwargs: Any,
    ) -> Any:
        """Cancel jobs that wait, and with `terminate` those that run; then tell the workers.

        An id that was not sent yet is remembered: its job does not run. Stock Celery tells whoever
        is listening, and forgets.

        Raises:
            Unavailable: Postgres is away; nothing was revoked.
        """
        for job_id in [task_id] if isinstance(task_id, str) else list(task_id):
            try:
                # Flower sends a number for a truth.
                self._revoke(str(job_id), running=bool(terminate))
            except (MalformedId, Conflict) as exc:
                logger.info("Nothing to revoke: %s", exc)
        return super().revoke(task_id, destination, terminate, signal, **kwargs)

    def _revoke(self, job_id: str, *, running: bool) -> None:
        known = durability_of(self.app)
        before = read(known.ledger, job_id)
        revoke(known.ledger, job_id, "revoked", running=running)
        if before is not None and before.state is State.SCHEDULED:
            # Its doorbell was not pushed yet: a worker that pops it now sends `task_revoked`.
            known.early_ends.ring([Ring(job_id, list_of(before.queue, before.priority), 0)])

    def revoke_by_stamped_headers(
        self,
        headers: dict[str, Any],
        destination: Any = None,
        terminate: Any = False,
        signal: Any = "SIGTERM",
        **kwargs: Any,
    ) -> Any:
        """Cancel the jobs with one of these stamps that wait, and with `terminate` those that run;
        then tell the workers.

        Raises:
            Unavailable: Postgres is away; what was revoked until then stays so.
        """
        revoke_stamped(durability_of(self.app).ledger, headers, running=bool(terminate))
        return super().revoke_by_stamped_headers(headers, destination, terminate, signal, **kwargs)
