"""Until when this worker's lease surely holds, on the machine's clock, for all its processes."""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable, Iterable

from worker.jobs.job import Fence


class LeaseClock:
    """The lease and its deadline, shared by the worker and the children that it forks.

    The deadline is when the last successful renewal was *sent*, plus the lease, minus a margin:
    Postgres counts from when it received it, which is later. CLOCK_BOOTTIME also counts while the
    machine sleeps. A process that was stopped past it finds so before it starts anything, and a
    job that was claimed under an earlier lease is not started under the next. Neither is what the
    ledger was seen to have taken back, or what the inventory has given back; a forked child does
    not hear of these.

    Args:
        may_run: whether the inventory has an attempt, and has not decided its end.
    """

    _DEADLINE = struct.Struct("d")
    _LEASE = struct.Struct("36s")

    def __init__(self, may_run: Callable[[Fence], bool] = lambda _: True) -> None:
        self._may_run, self._pid = may_run, os.getpid()
        # Anonymous memory that a fork shares.
        self._shared = mmap.mmap(-1, self._DEADLINE.size + self._LEASE.size)
        self._withdrawn: frozenset[Fence] = frozenset()

    def extend(self, lease: str, until: float) -> None:
        """Set the lease's id and its deadline, in seconds of `now()`."""
        if self._lease() != lease:
            self._DEADLINE.pack_into(self._shared, 0, 0.0)  # a reader in between may not start
            self._LEASE.pack_into(self._shared, self._DEADLINE.size, lease.encode())
        self._DEADLINE.pack_into(self._shared, 0, until)

    def withdraw(self, fences: Iterable[Fence]) -> None:
        """Set which attempts are not ours any more, of those that are here still."""
        self._withdrawn = frozenset(fences)

    def is_ahead(self) -> bool:
        """Whether the deadline is ahead: what is claimed now can be started."""
        (until,) = self._DEADLINE.unpack_from(self._shared)
        return now() < float(until)

    def may_start(self, fence: Fence) -> bool:
        """Whether the attempt may be started now."""
        if self._pid == os.getpid() and (fence in self._withdrawn or not self._may_run(fence)):
            return False
        # Now, because the inventory has a lock, at which this process may have been stopped; the
        # deadline first, so that it is no later lease's, and the time last.
        (until,) = self._DEADLINE.unpack_from(self._shared)
        return self._lease() == fence.lease and now() < float(until)

    def _lease(self) -> str:
        (lease,) = self._LEASE.unpack_from(self._shared, self._DEADLINE.size)
        return str(lease.rstrip(b"\0").decode())

    def __reduce__(self) -> tuple[object, tuple[()]]:
        # Sent to a pool's child with each job: the child has it already, by fork.
        return (_of_this_process, ())


_inherited: LeaseClock | None = None


def share(clock: LeaseClock) -> None:
    """Make `clock` the one that children of this process inherit."""
    global _inherited
    _inherited = clock


def _of_this_process() -> LeaseClock:
    if _inherited is None:
        raise RuntimeError("this process was not forked by a worker")
    return _inherited


def now() -> float:
    """Seconds since the machine started, sleep included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
