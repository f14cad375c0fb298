"""Suspects: what an isolated process claims, as many as it has children, or one truly alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

from worker.jobs.job import Claim, Fence
from worker.ledger.claim import ALONE, claim_suspects
from worker.ledger.database import Ledger
from worker.runtime.claims import Claims


class SuspectSource:
    """Claims of suspects: as many as there are children free, or one that must run alone."""

    def __init__(
        self, ledger: Ledger, claims: Claims, queues: Callable[[], list[str]], pause: float = 0.2
    ) -> None:
        self._ledger = ledger
        self._claims = claims
        self._queues = queues
        self._pause = threading.Event()
        self._seconds = pause
        self._alone: Fence | None = None

    def take(self, lease: str, most: int) -> list[Claim]:
        """See `Source`."""
        held = {entry.id: entry.fence for entry in self._claims.entries()}
        # The ledger may have let go of it already, as after a cancel; its child has not.
        if self._alone is not None and self._alone in held.values():
            self._pause.wait(0.05)
            return []
        # An end that is not committed yet counts as held: it would be lost with this process.
        taken = claim_suspects(
            self._ledger, lease, self._queues(), most, idle=not held, known=held.keys()
        )
        if not taken:
            self._pause.wait(self._seconds)
        for item in taken:
            self._claims.grant(item.fence)
            self._alone = item.fence if item.suspicion >= ALONE else None
        return taken
