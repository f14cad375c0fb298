"""Ring for jobs that are committed: best effort, because the keeper rings again."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from worker.broker.doorbells import Doorbells
from worker.errors import BrokerUnavailable
from worker.jobs.job import Ring

logger = logging.getLogger(__name__)


def ring(doorbells: Doorbells, rings: Sequence[Ring]) -> bool:
    """Push `rings`; when Redis is away the jobs are safe, and start when it is back.

    Returns:
        Whether they were pushed.
    """
    try:
        doorbells.ring(rings)
        return True
    except BrokerUnavailable as exc:
        logger.warning("%d jobs are durable, their doorbells are late: %s", len(rings), exc)
        return False
