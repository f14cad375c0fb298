"""Ring again for jobs whose doorbell was lost.

Every dispatch takes a rising number, also in the doorbell. A Redis list is first in, first out: a
queued job with a smaller number than the next to be popped was popped. Still queued a grace period
later, it was popped and lost; in an empty list, all were. No scan of Redis.
"""

from __future__ import annotations

import logging

from worker.errors import BrokerRefused, BrokerUnavailable
from worker.keeper.keeper import Post
from worker.ledger.dispatch import BATCH, take_lost, take_unsure, waiting_lists

logger = logging.getLogger(__name__)


class Ringer:
    """Finds lost doorbells, list by list, in bounded batches."""

    every = 0.5

    def __init__(self) -> None:
        self._refused: set[str] = set()

    def run(self, post: Post) -> bool:
        """See `Duty`. While Redis does not answer nothing is known, and nothing is rung."""
        more = False
        for name in waiting_lists(post.ledger):
            try:
                front = post.doorbells.front(name)
            except BrokerRefused as exc:
                self._skip(name, exc)
                continue
            except BrokerUnavailable:
                return False
            self._refused.discard(name)
            if front.seq is None and not front.empty:
                rings = take_unsure(post.ledger, post.leadership, name)
            else:
                grace = post.settings.ring_grace_seconds
                rings = take_lost(post.ledger, post.leadership, name, front.seq, grace)
            if rings:
                logger.info("Ringing again for %d jobs of list %r.", len(rings), name)
                if not post.ring(rings):
                    continue  # Redis can be read and not written: it is full, or forbids this list
            more = more or len(rings) == BATCH
        return more

    def _skip(self, name: str, reason: BrokerRefused) -> None:
        if name not in self._refused:
            logger.warning("List %r cannot be rung, the others are: %s", name, reason)
            self._refused.add(name)
