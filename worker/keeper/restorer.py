"""Put back what a worker popped and died before it had made it a row."""

from __future__ import annotations

import logging

from worker.keeper.keeper import Post

logger = logging.getLogger(__name__)

#: Seconds between pop and claim after which a worker is taken to have died in between.
VISIBILITY_SECONDS = 30.0


class Restorer:
    """Restores entries of producers that do not know the ledger; ours need none."""

    every = 5.0

    def run(self, post: Post) -> bool:
        """See `Duty`."""
        restored = post.doorbells.restore(VISIBILITY_SECONDS)
        if restored:
            logger.warning("Put back %d entries that were popped and not adopted.", restored)
        return False
