"""The worker's inventory: every job that it has claimed, until its end or its release is committed.

Celery's own sets are no authority here: a dropped broker connection clears them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from worker.jobs.job import Fence
from worker.runtime.pace import Pace

logger = logging.getLogger(__name__)


class Phase(Enum):
    """How far a claimed job has come in this process."""

    CLAIMED = "claimed"  # ours, or about to be; not given to the pool
    HANDED = "handed"  # given to the pool
    STARTED = "started"  # a thread or child runs it
    ENDED = "ended"  # over; its end is not committed yet


#: Whatever phase it is in.
ANY: Final = frozenset(Phase)


@dataclass(slots=True)
class Entry:
    """One claimed job.

    Attributes:
        id: the job's.
        fence: `None` while the claim is under way.
        phase: see `Phase`.
        since: monotonic seconds when the phase began.
        pid: the child process that runs it, in prefork.
        stale: True once the ledger says that it is not ours any more.
    """

    id: str
    fence: Fence | None = None
    phase: Phase = Phase.CLAIMED
    since: float = 0.0
    pid: int | None = None
    stale: bool = False


class Claims:
    """The inventory, and the free slots that follow from it. Safe from every thread.

    Args:
        slots: how many jobs the pool runs at once, asked each time.
    """

    def __init__(self, slots: Callable[[], int]) -> None:
        self._slots = slots
        self._entries: dict[str, Entry] = {}
        self._ended = 0  # how many entries are in that phase
        self._pace = Pace()
        self._wanted = 1  # free slots that the fetcher waits for
        self._changed = threading.Condition(threading.Lock())

    @property
    def slots(self) -> int:
        """How many jobs the pool runs at once."""
        return self._slots()

    def reserve(self, ids: Iterable[str]) -> list[str]:
        """Enter `ids` before they are claimed; those that are in here already are left out."""
        with self._changed:
            fresh = [job_id for job_id in dict.fromkeys(ids) if job_id not in self._entries]
            for job_id in fresh:
                self._entries[job_id] = Entry(job_id, since=time.monotonic())
            self._pace.claimed()
            return fresh

    def miss(self, fence: Fence) -> None:
        """This attempt is ours, and was not started in the lease: claim less for a while."""
        with self._changed:
            entry = self._entries.get(fence.id)
            if entry is None or entry.fence != fence or entry.stale or entry.phase is Phase.ENDED:
                return  # it was cancelled, or given back
            if self._pace.missed(self._slots()):
                logger.warning(
                    "Jobs that this worker claimed were not started in the lease, as where the CPU"
                    " is overloaded; %d at a time wait for their start now.", self._pace.window,
                )  # fmt: skip

    def grant(self, fence: Fence) -> None:
        """The ledger granted a reserved job."""
        with self._changed:
            entry = self._entries.get(fence.id)
            if entry is None or entry.fence not in (None, fence):
                # An attempt before it may be here still: its end is committed, and not heard to be.
                self._forget(fence.id)
                entry = self._entries[fence.id] = Entry(fence.id)
            entry.fence, entry.since = fence, time.monotonic()

    def drop(self, ids: Iterable[str]) -> None:
        """Take out what was not granted, or what is settled in the ledger."""
        with self._changed:
            for job_id in ids:
                self._forget(job_id)
            self._tell()

    def settle(self, fence: Fence) -> None:
        """The end of this attempt is committed, or refused for good: forget the attempt."""
        with self._changed:
            entry = self._entries.get(fence.id)
            if entry is not None and entry.fence == fence:
                self._forget(fence.id)
                self._tell()

    def move(
        self,
        fence: Fence,
        phase: Phase,
        pid: int | None = None,
        *,
        among: Collection[Phase] = ANY,
    ) -> bool:
        """Note how far the attempt has come.

        Args:
            fence: whose.
            phase: how far.
            pid: the child process that runs it.
            among: the phases from which it may be moved; never from the last.

        Returns:
            False when it is not here, has ended, or is in another phase than those.
        """
        with self._changed:
            entry = self._entries.get(fence.id)
            if entry is None or entry.fence != fence:
                return False
            if entry.phase is Phase.ENDED or entry.phase not in among:
                return False
            entry.phase, entry.since = phase, time.monotonic()
            entry.pid = pid if pid is not None else entry.pid
            if phase is Phase.ENDED:
                self._ended += 1
                self._tell()
            elif phase is Phase.STARTED and self._pace.window is not None:
                self._pace.started(self._slots())
                self._tell()
            return True

    def may_run(self, fence: Fence) -> bool:
        """Whether the attempt is here, and its end is not decided."""
        with self._changed:
            entry = self._entries.get(fence.id)
            return entry is not None and entry.fence == fence and entry.phase is not Phase.ENDED

    def fence_of(self, job_id: str) -> Fence | None:
        """The fence under which this worker holds the job, if it does."""
        with self._changed:
            entry = self._entries.get(job_id)
            return entry.fence if entry else None

    def entries(self) -> list[Entry]:
        """A copy of the list of entries; the entries themselves are live."""
        with self._changed:
            return list(self._entries.values())

    def free(self) -> int:
        """How many jobs could start at once."""
        with self._changed:
            return self._free()

    def wait_for_slots(self, count: int, seconds: float) -> int:
        """Wait until `count` jobs could start, at most `seconds`; how many could.

        For one thread: it alone is woken for that count.
        """
        with self._changed:
            self._wanted = count
            self._changed.wait_for(lambda: self._free() >= count, timeout=seconds)
            return self._free()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until nothing is claimed, handed or started, at most `seconds`; whether so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._unfinished(), timeout=seconds)

    def wake(self) -> None:
        """Let whoever waits look again."""
        with self._changed:
            self._changed.notify_all()

    def _forget(self, job_id: str) -> None:
        entry = self._entries.pop(job_id, None)
        if entry is not None and entry.phase is Phase.ENDED:
            self._ended -= 1

    def _tell(self) -> None:
        """Wake those who wait, once there is what they wait for: this is called for every job."""
        unfinished = self._unfinished()
        if self._pace.window is None:  # as nearly always: this is called for every job
            is_enough = self._slots() - unfinished >= self._wanted
        else:
            is_enough = self._free() >= self._wanted
        if not unfinished or is_enough:
            self._changed.notify_all()

    def _unfinished(self) -> int:
        return len(self._entries) - self._ended

    def _free(self) -> int:
        free = self._slots() - self._unfinished()
        if (window := self._pace.window) is not None:
            waiting = (Phase.CLAIMED, Phase.HANDED)
            free = min(free, window - sum(e.phase in waiting for e in self._entries.values()))
        return max(0, free)
