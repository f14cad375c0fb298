"""After a step back of Postgres's clock, let what waits wait no longer than it should."""

from __future__ import annotations

import logging

from worker.keeper.boot import boot_time
from worker.keeper.keeper import Post
from worker.ledger.look import Look, look_at
from worker.ledger.steps import BATCH, move_back

logger = logging.getLogger(__name__)

#: Seconds without a look after which a step may have been missed.
UNSEEN = 10.0


class Corrector:
    """Moves back the times of waiting jobs, once a step back was seen or may have been missed.

    For the length of a lease from then on: a statement that read the clock before the step may be
    committed after it.
    """

    every = 1.0

    def __init__(self) -> None:
        self._last: Look | None = None
        self._until = 0.0

    def run(self, post: Post) -> bool:
        """See `Duty`."""
        last, self._last = self._last, None  # unless this round goes well
        look = look_at(post.ledger, boot_time)
        if last is None or self._may_be_back(last, look):
            self._until = look.answered + post.settings.lease_seconds
        moved = 0
        if look.answered <= self._until:
            moved = move_back(post.ledger, post.leadership)
        if moved:
            logger.warning(
                "Postgres's clock is behind what it said before; the times of %d waiting jobs are"
                " moved back. See to the clocks of its hosts.",
                moved,
            )
        self._last = look
        return moved >= BATCH

    def _may_be_back(self, last: Look, look: Look) -> bool:
        return (
            last.started != look.started
            or last.stepped(look) < 0
            or look.asked - last.answered > UNSEEN
        )
