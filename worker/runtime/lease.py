"""Keep this worker's lease: renew it on its own connection and thread, reconcile the inventory."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from worker.errors import LedgerError
from worker.jobs.job import Fence, Finish
from worker.jobs.states import State
from worker.ledger.database import Ledger
from worker.ledger.lease import (
    close_lease,
    ended,
    forfeit_lease,
    held,
    open_lease,
    renew,
    tell_tasks,
)
from worker.runtime.claims import Claims, Phase
from worker.runtime.clock import LeaseClock, now

logger = logging.getLogger(__name__)

#: Renewals in one lease: two may fail before it expires.
RENEWALS_PER_LEASE = 3
#: The part of a lease by which a job's start must precede its end.
MARGIN = 0.1
#: Seconds between tries while Postgres is away.
AWAY_PAUSE = 0.25


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """What a lease is opened with: the worker's name, queues, seconds, pod and tasks."""

    name: str
    queues: Callable[[], list[str]]
    seconds: float
    isolated: bool = False
    pod: str | None = None
    tasks: Callable[[], Collection[str]] | None = None


@dataclass(slots=True)
class Lease:
    """This process's lease, renewed by a thread that does nothing else.

    After an outage of Postgres it renews first; whoever waits on `is_held` then flushes its
    finishes, and only then claims.

    Args:
        ledger: a ledger of its own, so that a full pool of connections cannot stop the renewal.
        terms: see `LeaseTerms`.
        claims: the inventory to reconcile.
        clock: the deadline to extend.
        is_healthy: asked before each renewal; False lets the lease expire, because a worker that
            renews but cannot finish would hold its jobs for ever.
        on_finish: takes the release of what nobody holds.
        on_stale: told the entries that the ledger says are not ours any more.
        on_renewed: told after each renewal.
    """

    ledger: Ledger
    terms: LeaseTerms
    claims: Claims
    clock: LeaseClock
    is_healthy: Callable[[], bool]
    on_finish: Callable[[Finish], None]
    on_stale: Callable[[list[Fence]], None]
    on_renewed: Callable[[], None]
    _id: str | None = None
    _held: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _hurry: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _told: frozenset[str] = frozenset()
    _orphans: frozenset[tuple[str, int]] = frozenset()

    @property
    def id(self) -> str | None:
        """The lease's id; another one after it was lost."""
        return self._id

    @property
    def is_held(self) -> bool:
        """Whether the last renewal succeeded and nobody has reported the ledger away since."""
        return self._held.is_set()

    def open(self) -> None:
        """Open the lease.

        Raises:
            Unavailable: Postgres is away.
        """
        sent = now()
        terms = self.terms
        tasks = None if terms.tasks is None else frozenset(terms.tasks())
        self._id = open_lease(
            self.ledger,
            terms.name,
            terms.queues(),
            terms.seconds,
            isolated=terms.isolated,
            pod=terms.pod,
            slots=self.claims.slots,
            tasks=tasks,
        )
        self._told = tasks or frozenset()
        self.clock.extend(self._id, sent + terms.seconds * (1 - MARGIN))
        self._held.set()

    def start(self) -> None:
        """Start to renew."""
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop to renew; the lease stays until `close` or its expiry."""
        self._stop.set()
        self._hurry.set()

    def wait(self, seconds: float) -> bool:
        """Wait until the lease is held; whether it is."""
        return self._held.wait(seconds)

    def report_away(self) -> None:
        """Somebody met the ledger away: nothing is claimed or finished before a renewal."""
        self._held.clear()
        self._hurry.set()

    def close(self) -> list[str]:
        """End the lease and give back what it holds; the ids given back.

        Raises:
            Unavailable: Postgres is away; the keeper rescues them when the lease expires.
        """
        self.stop()
        return close_lease(self.ledger, self._id) if self._id else []

    def forfeit(self) -> bool:
        """End the lease as a death would, for what it holds may be why; whether it held anything.

        Raises:
            Unavailable: Postgres is away; it expires by itself.
        """
        self.stop()
        return forfeit_lease(self.ledger, self._id) if self._id else False

    def _run(self) -> None:
        period = self.terms.seconds / RENEWALS_PER_LEASE
        while not self._stop.is_set():
            self._hurry.wait(period if self.is_held else AWAY_PAUSE)
            self._hurry.clear()
            if self._stop.is_set():
                return
            try:
                self._renew()
            except LedgerError as exc:
                if self.is_held:
                    logger.warning("The lease could not be renewed: %s", exc)
                self._held.clear()
            except Exception:
                logger.exception("The lease could not be renewed")
                self._held.clear()
            if not self.is_held:
                self._stop.wait(AWAY_PAUSE)

    def _renew(self) -> None:
        if not self.is_healthy():
            logger.error("This worker makes no progress; its lease is left to expire.")
            self._held.clear()
            return
        sent = now()
        assert self._id is not None
        if renew(self.ledger, self._id, self.terms.seconds):
            # Reconciled first: what was cancelled is not started more than a lease later.
            self._reconcile()
            self._tell_tasks()
            self.clock.extend(self._id, sent + self.terms.seconds * (1 - MARGIN))
        elif self._stop.is_set():
            return  # `close` has ended it meanwhile; a new one would outlive this worker
        else:
            self._replace()
        if not self.is_held:
            logger.info("The lease is held again.")
        self._held.set()
        self.on_renewed()

    def _tell_tasks(self) -> None:
        """Tell the ledger which tasks this worker knows, where that has changed."""
        tasks = frozenset() if self.terms.tasks is None else frozenset(self.terms.tasks())
        if tasks != self._told and self._id is not None:
            tell_tasks(self.ledger, self._id, tasks)
            self._told = tasks

    def _replace(self) -> None:
        lost = [entry.fence for entry in self.claims.entries() if entry.fence]
        logger.warning(
            "Lease %s expired and its %d jobs were rescued; taking a new one.", self._id, len(lost)
        )
        self.open()
        self._forget_unstarted()
        self.on_stale(lost)

    def _forget_unstarted(self) -> None:
        """Forget what was rescued before it was started; not what the new lease claims already."""
        self.claims.drop(
            entry.id
            for entry in self.claims.entries()
            if entry.phase is Phase.CLAIMED and entry.fence and entry.fence.lease != self._id
        )

    def _reconcile(self) -> None:
        """Hold the inventory against the ledger. The ledger is read first: what was claimed or
        finished meanwhile is then in the inventory still, or guarded by its fence."""
        assert self._id is not None
        started = time.monotonic()
        running = held(self.ledger, self._id)
        entries = {entry.id: entry for entry in self.claims.entries()}
        # Another attempt than the one here is nobody's either: a failover brought an older ledger.
        self._give_back(
            {
                (job_id, attempt)
                for job_id, attempt in running
                if (entry := entries.get(job_id)) is None
                or (entry.fence is not None and entry.fence.attempt != attempt)
            }
        )
        stale = [
            entry.fence
            for entry in entries.values()
            if entry.fence is not None
            and entry.phase is not Phase.ENDED
            and entry.since < started
            and (entry.id, entry.fence.attempt) not in running
        ]
        stale = self._without_ended(stale)
        self.clock.withdraw(stale)
        if stale:
            self.on_stale(stale)

    def _without_ended(self, stale: list[Fence]) -> list[Fence]:
        """Leave out what the ledger does not call running because its end is committed, while the
        user's code that comes after it still runs here."""
        if not stale:
            return stale
        assert self._id is not None
        committed = ended(self.ledger, self._id, [(fence.id, fence.attempt) for fence in stale])
        return [fence for fence in stale if (fence.id, fence.attempt) not in committed]

    def _give_back(self, orphans: set[tuple[str, int]]) -> None:
        """Release what the ledger says is ours and nobody here holds, once seen twice in a row:
        the first time it may be a claim whose answer is still on its way."""
        assert self._id is not None
        for job_id, attempt in orphans & self._orphans:
            logger.warning("Job %s runs in nobody's hands here; giving it back.", job_id)
            fence = Fence(job_id, attempt, self._id)
            self.on_finish(Finish(fence, State.QUEUED, "released", error="claimed but not held"))
        self._orphans = frozenset(orphans)
