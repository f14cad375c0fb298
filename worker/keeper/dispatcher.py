"""Dispatch what is due: a job with a `run_at` starts within 250 ms of it."""

from __future__ import annotations

from worker.keeper.keeper import Post
from worker.ledger.dispatch import BATCH, dispatch_due


class Dispatcher:
    """Queues due jobs and rings for them."""

    every = 0.1

    def run(self, post: Post) -> bool:
        """See `Duty`. A doorbell is pushed after the commit: before, it would ring for nobody."""
        rings = dispatch_due(post.ledger, post.leadership)
        post.ring(rings)
        return len(rings) == BATCH
