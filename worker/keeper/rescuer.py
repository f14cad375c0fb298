"""Rescue the jobs of workers that stopped renewing; never in haste after an outage."""

from __future__ import annotations

import logging
import math
import time

from worker.errors import LedgerUnavailable
from worker.keeper.keeper import Post
from worker.ledger.rescue import rescue, uptime

logger = logging.getLogger(__name__)


class Rescuer:
    """Ends expired leases, once it has watched the ledger for a whole lease without a gap.

    Right after an outage of Postgres, or of this keeper, every lease looks expired and none is:
    nobody could renew. Whoever is alive renews within a lease of the ledger being back.
    """

    every = 0.25

    def __init__(self) -> None:
        self._watching_since: float | None = None
        self._last = 0.0
        self._last_expiry = -math.inf

    def run(self, post: Post) -> bool:
        """See `Duty`."""
        lease = post.settings.lease_seconds
        try:
            up = uptime(post.ledger)
        except LedgerUnavailable:
            self._watching_since = None
            raise
        now = time.monotonic()
        if self._watching_since is None or now - self._last > lease / 3:
            self._watching_since = now
        self._last = now
        if min(now - self._watching_since, up) < lease:
            return False
        # Processes that die together renew at different moments, up to a third of a lease apart.
        accuse = now - self._last_expiry > lease / 2
        done = rescue(post.ledger, post.leadership, post.settings.lost_limit, accuse=accuse)
        if done.leases:
            self._last_expiry = now
        if done.leases or done.queued or done.poisoned:
            logger.warning(
                "Rescued %d jobs of %d expired leases; %d are poison.",
                len(done.queued), done.leases, len(done.poisoned),
            )  # fmt: skip
        return done.full
