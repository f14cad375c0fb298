"""What waits in a queue's lists, for those who would take it by hand: a purge, a `basic_get`."""

from __future__ import annotations

from typing import Any, Final

from worker.broker.doorbells import BATCH, ring_of
from worker.errors import InvalidRequest
from worker.jobs.queues import lists_of

_FIRST: Final = -1


def emptied(client: Any, queue: str) -> int:
    """Take everything out of a queue's lists, but what comes meanwhile; how many entries were
    messages of producers without the ledger. The others are doorbells, which are worth nothing.

    Args:
        client: of the Redis; its errors are the caller's to meet.
        queue: which.
    """
    foreign = 0
    for name in lists_of(queue):
        left = int(client.llen(name))
        while left > 0:
            entries = client.rpop(name, min(left, BATCH)) or ()
            if not entries:
                break
            foreign += sum(ring_of(name, entry) is None for entry in entries)
            left -= len(entries)
    return foreign


def refuse_doorbells(client: Any, queue: str) -> None:
    """Make sure that the next entry of a queue is no doorbell: its message is in the ledger.

    Raises:
        InvalidRequest: it is one; it was left where it is.
    """
    for name in lists_of(queue):
        entry = client.lindex(name, _FIRST)
        if entry is None:
            continue
        ring = ring_of(name, entry)
        if ring is not None:
            raise InvalidRequest(
                f"The next message of queue {queue!r} is job {ring.id}, which a worker claims from"
                f" the ledger and nobody takes by hand; `worker job show {ring.id}` shows it."
            )
        return
