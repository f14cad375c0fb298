"""What listeners such as Flower are told of a job's end: what the ledger says, once it says so.

A stale attempt ends too: its job was cancelled or rescued meanwhile, and the ledger refuses its
end. Of a success that is not recorded nobody must hear, so the event of an end waits for the
commit. The end of an attempt whose job was cancelled is told as `task-revoked`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from worker.errors import LedgerError
from worker.jobs.job import Fence, Finish, Job
from worker.jobs.states import State
from worker.runtime.claims import Claims

logger = logging.getLogger(__name__)

#: Events of Celery that say how an attempt has ended.
ENDS: Final = frozenset({"task-succeeded", "task-failed", "task-retried", "task-rejected"})
#: Attempts that are remembered whose end was refused: their event may come a moment later.
REFUSED_MOST: Final = 1000

Send = Callable[..., None]


@dataclass(frozen=True, slots=True)
class _Held:
    kind: str
    fields: dict[str, Any]
    send: Send


class Tidings:
    """Events of ends, held until their commit. Safe from every thread.

    Args:
        claims: the inventory, which an attempt leaves when its end is committed or refused.
        jobs: reads jobs of the ledger by their ids.
    """

    def __init__(self, claims: Claims, jobs: Callable[[Sequence[str]], list[Job]]) -> None:
        self._claims, self._jobs = claims, jobs
        # An attempt may have two: one with acks_late that rejects its job has failed, too.
        self._held: dict[Fence, list[_Held]] = {}
        self._refused: dict[Fence, None] = {}
        self._lock = threading.Lock()

    def tell(self, fence: Fence, kind: str, fields: dict[str, Any], send: Send) -> None:
        """Send the event of an attempt's end, now or once the end is committed.

        Args:
            fence: the attempt's.
            kind: one of `ENDS`.
            fields: of the event.
            send: sends an event; may be called from another thread.
        """
        held = _Held(kind, {"timestamp": time.time(), **fields}, send)
        with self._lock:
            is_refused = fence in self._refused
            if not is_refused and self._claims.fence_of(fence.id) == fence:
                self._held.setdefault(fence, []).append(held)
                return
        if is_refused:
            # Not here: this may be the event loop, which does not wait for Postgres.
            look = threading.Thread(target=self._tell_cancelled, args=({fence: held},), daemon=True)
            look.start()
        else:
            send(kind, **held.fields)

    def settle(self, written: Sequence[Finish], stale: Sequence[Finish]) -> None:
        """These ends are committed, and those are refused for good: the attempts are over."""
        told: list[tuple[Finish, _Held]] = []
        with self._lock:
            for end in (*written, *stale):
                self._claims.settle(end.fence)
            for end in stale:
                self._refused[end.fence] = None
            while len(self._refused) > REFUSED_MOST:
                del self._refused[next(iter(self._refused))]
            if not self._held:
                return
            for end in written:
                told.extend((end, held) for held in self._held.pop(end.fence, ()))
            dropped = {
                end.fence: held[0] for end in stale if (held := self._held.pop(end.fence, ()))
            }
        try:
            self._tell(told)
            self._tell_cancelled(dropped)
        except Exception as exc:  # it is for watching, and must not stop the writer
            logger.warning("Listeners are not told how jobs ended: %r", exc)

    def _tell(self, told: Sequence[tuple[Finish, _Held]]) -> None:
        for end, held in told:
            if held.kind == "task-succeeded" and end.state is State.FAILED:
                # Postgres has refused the result, which is a failure.
                held.send("task-failed", exception=end.error, traceback="")
            else:
                held.send(held.kind, **held.fields)

    def _tell_cancelled(self, dropped: dict[Fence, _Held]) -> None:
        if not dropped:
            return
        try:
            jobs = {job.id: job for job in self._jobs([fence.id for fence in dropped])}
        except LedgerError as exc:
            logger.warning("Listeners are not told how jobs ended: %r", exc)
            return
        for fence, held in dropped.items():
            job = jobs.get(fence.id)
            if job and job.state is State.CANCELLED and job.attempt == fence.attempt:
                held.send("task-revoked", terminated=True, signum=None, expired=False)
