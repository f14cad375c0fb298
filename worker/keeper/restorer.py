"""Put back what was popped from Redis by somebody who died before it was safe elsewhere."""

from __future__ import annotations

import logging

from worker.broker.stock import BATCH
from worker.keeper.keeper import Post

logger = logging.getLogger(__name__)

#: Seconds between pop and claim after which a worker is taken to have died in between.
VISIBILITY_SECONDS = 30.0
#: Seconds after which a stock consumer that has not acknowledged a message is taken to have died:
#: kombu's own `visibility_timeout`, where nothing else is configured. The keeper has no app to ask.
STOCK_VISIBILITY_SECONDS = 3600.0


class Restorer:
    """Restores entries of producers that do not know the ledger; ours need none.

    And what consumers that do not know it have left: stock workers from before, whose successors
    looked for it, and consumers of a user's own.
    """

    every = 5.0

    def run(self, post: Post) -> bool:
        """See `Duty`."""
        restored = post.doorbells.restore(VISIBILITY_SECONDS)
        if restored:
            logger.warning("Put back %d entries that were popped and not adopted.", restored)
        left = post.doorbells.restore_stock(STOCK_VISIBILITY_SECONDS)
        if left:
            logger.warning("Put back %d messages that a stock consumer had left.", left)
        return left == BATCH
