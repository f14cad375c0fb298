"""Drop what is past its retention, and cancel what was not started in its time."""

from __future__ import annotations

from worker.keeper.keeper import Post
from worker.ledger.retention import BATCH, drop_old, expire_late


class Cleaner:
    """Deletes finished jobs by age, a batch at a time."""

    every = 30.0

    def run(self, post: Post) -> bool:
        """See `Duty`."""
        dropped = drop_old(
            post.ledger,
            post.leadership,
            succeeded_days=post.settings.keep_succeeded_days,
            failed_days=post.settings.keep_failed_days,
        )
        return dropped >= BATCH


class Expirer:
    """Cancels waiting jobs past their `expires`."""

    every = 1.0

    def run(self, post: Post) -> bool:
        """See `Duty`."""
        return expire_late(post.ledger, post.leadership) == BATCH
