"""Rate limits: each job over its task's rate gets a time of its own to come back."""

from __future__ import annotations

import time
from typing import Any


class Rates:
    """The next free moment of each rate-limited task, on this worker.

    Stock Celery keeps jobs over the rate in the worker's memory. Here they wait in the ledger; and
    because each gets another moment, they do not come back as a herd.
    """

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def wait(self, bucket: Any, task: str) -> float:
        """Seconds until a job of `task` may start; 0 when it may now, and has taken its token.

        Args:
            bucket: kombu's TokenBucket of the task, `None` without a limit.
            task: the task's name.
        """
        if bucket is None or bucket.can_consume(1):
            return 0.0
        now = time.monotonic()
        earliest = now + bucket.expected_time(1)
        turn = max(earliest, self._next.get(task, 0.0))
        self._next[task] = turn + 1 / bucket.fill_rate
        return float(turn - now)
