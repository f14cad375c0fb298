"""Rescue the jobs of workers that stopped renewing; never in haste after an outage."""

from __future__ import annotations

import logging
import math

from worker.keeper.boot import boot_time
from worker.keeper.keeper import Post
from worker.ledger.effort import Effort
from worker.ledger.faults import NotDone
from worker.ledger.look import Look, look_at
from worker.ledger.rescue import Rescued, rescue

logger = logging.getLogger(__name__)


class Rescuer:
    """Ends expired leases, once it has watched the ledger for a whole lease without a gap.

    Right after an outage of Postgres, or of this keeper, every lease looks expired and none is:
    nobody could renew. Whoever is alive renews within a lease of the ledger being back. Another
    server than before and a step of its clock are such a gap too, even if no call failed.
    """

    every = 0.25

    def __init__(self) -> None:
        self._watching_since: float | None = None
        self._last = 0.0
        self._seen: Look | None = None
        self._last_expiry = -math.inf
        self._effort = Effort()

    def run(self, post: Post) -> bool:
        """See `Duty`."""
        try:
            return self._look(post)
        except Exception:
            # Whatever kept this keeper from the ledger may keep workers from renewing, even if it
            # is one table that is locked; and another keeper may have led meanwhile.
            self._watching_since = None
            raise

    def _look(self, post: Post) -> bool:
        lease = post.settings.lease_seconds
        look, seen = look_at(post.ledger, boot_time), self._seen
        now, self._seen = look.answered, look
        if (
            self._watching_since is None
            or now - self._last > lease / 3
            or (seen is not None and seen.is_gap(look))
        ):
            self._watching_since = now
        self._last = now
        if now - self._watching_since < lease:
            return False
        # Processes that die together renew at different moments, up to a third of a lease apart.
        # A worker and its isolated process, which the ledger ends together, apart.
        accuse = now - self._last_expiry > lease / 2
        done = self._rescue(post, accuse, look)
        if done.leases:
            self._last_expiry = now
        post.ring(done.rings)
        if done.leases or done.queued or done.poisoned:
            logger.warning(
                "Rescued %d jobs of %d expired leases; %d are poison.",
                len(done.queued), done.leases, len(done.poisoned),
            )  # fmt: skip
        return done.full

    def _rescue(self, post: Post, accuse: bool, look: Look) -> Rescued:
        """The rescue, with more time after one that took too long. The keeper's own count of that
        is gone by then: a lease of good rounds lies between two of these."""
        try:
            with post.patient(self._effort):
                done = rescue(
                    post.ledger,
                    post.leadership,
                    post.settings.lost_limit,
                    accuse=accuse,
                    look=look,
                    within=post.settings.lease_seconds / 3,
                )
        except NotDone:
            self._effort.too_much()
            raise
        self._effort.done()
        return done
