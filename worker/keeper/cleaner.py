"""Drop what is past its retention, and cancel what was not started in its time."""

from __future__ import annotations

from worker.keeper.keeper import Post
from worker.ledger.effort import Effort
from worker.ledger.faults import NotDone
from worker.ledger.retention import BATCH, drop_old, expire_late


class Cleaner:
    """Deletes finished jobs by age, a batch at a time; a smaller one after each that took too long,
    as a thousand results of megabytes may."""

    every = 30.0

    def __init__(self) -> None:
        self._effort = Effort(BATCH)

    def run(self, post: Post) -> bool:
        """See `Duty`."""
        batch = self._effort.size
        try:
            with post.patient(self._effort):
                dropped = drop_old(
                    post.ledger,
                    post.leadership,
                    succeeded_days=post.settings.keep_succeeded_days,
                    failed_days=post.settings.keep_failed_days,
                    batch=batch,
                )
        except NotDone:
            self._effort.too_much(batch)
            raise
        self._effort.done()
        return dropped >= batch


class Expirer:
    """Cancels waiting jobs past their `expires`, and lets workers know where nothing else does."""

    every = 1.0

    def run(self, post: Post) -> bool:
        """See `Duty`."""
        expired = expire_late(post.ledger, post.leadership)
        post.ring(expired.rings)
        return expired.count == BATCH
