"""`app.control`, with a revoke that nobody forgets."""

from __future__ import annotations

import logging
from typing import Any

from celery.app.control import Control

from worker.errors import Conflict, NotFound
from worker.ledger.change import cancel
from worker.runtime.install import durability_of

logger = logging.getLogger(__name__)


class LedgerControl(Control):  # type: ignore[misc] # Celery's class is not typed
    """Celery's control; a revoke is written to the ledger before it is broadcast."""

    def revoke(
        self,
        task_id: str | list[str],
        destination: Any = None,
        terminate: bool = False,
        signal: Any = "SIGTERM",
        **kwargs: Any,
    ) -> Any:
        """Cancel jobs that wait, and with `terminate` those that run; then tell the workers.

        Stock Celery tells whoever is listening, and forgets.

        Raises:
            Unavailable: Postgres is away; nothing was revoked.
        """
        ledger = durability_of(self.app).ledger
        for job_id in [task_id] if isinstance(task_id, str) else task_id:
            try:
                cancel(ledger, job_id, "revoked", running=terminate)
            except (NotFound, Conflict) as exc:
                logger.info("Nothing to revoke: %s", exc)
        return super().revoke(task_id, destination, terminate, signal, **kwargs)
