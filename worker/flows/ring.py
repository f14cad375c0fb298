"""Ring for jobs that are committed: best effort, because the keeper rings again."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final, Self

from worker.broker.doorbells import Doorbells
from worker.errors import BrokerRefused, BrokerUnavailable
from worker.jobs.job import Ring

logger = logging.getLogger(__name__)

#: Seconds after which somebody who enqueues many looks again whether Redis is back.
AWAY_PAUSE: Final = 1.0
#: Doorbells that are kept for then; the keeper rings for the jobs that come after those.
LATE_MOST: Final = 10_000


def ring(doorbells: Doorbells, rings: Sequence[Ring]) -> bool:
    """Push `rings`; when Redis is away the jobs are safe, and start when it is back.

    Returns:
        Whether Redis was there.
    """
    try:
        doorbells.ring(rings)
        return True
    except BrokerUnavailable as exc:
        logger.warning("%d jobs are durable, their doorbells are late: %s", len(rings), exc)
        return isinstance(exc, BrokerRefused)


class Ringing:
    """Rings for one part of many jobs after the other; what Redis missed comes with a later part.

    Once Redis is found away, nobody waits for it again for `AWAY_PAUSE`.
    """

    def __init__(self, doorbells: Doorbells) -> None:
        self._doorbells = doorbells
        self._late: list[Ring] = []
        self._told = 0  # of how many the log says that they are late
        self._left = 0  # how many are the keeper's to ring
        self._not_before = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if len(self._late) > self._told:
            logger.warning(
                "%d jobs are durable, their doorbells are late: %s",
                len(self._late), "Redis was away a moment ago.",
            )  # fmt: skip
        if self._left:
            logger.warning("%d doorbells too many were late: the keeper rings.", self._left)

    def add(self, rings: Sequence[Ring]) -> None:
        """Ring for these too, or later."""
        self._late += rings
        if time.monotonic() >= self._not_before:
            if ring(self._doorbells, self._late):
                self._late, self._told = [], 0
                return
            self._told = len(self._late)
            self._not_before = time.monotonic() + AWAY_PAUSE
        self._left += len(self._late[LATE_MOST:])
        del self._late[LATE_MOST:]
