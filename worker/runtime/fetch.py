"""Fetch: pop doorbells, claim their jobs, hand them over. Never more than there are free slots."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from worker.broker.doorbells import Doorbells, Popped, ring_of
from worker.broker.messages import foreign_job
from worker.errors import LedgerError, LedgerUnavailable
from worker.jobs.job import Claim, NewJob
from worker.jobs.queues import lists_of
from worker.ledger.claim import adopt, claim
from worker.ledger.database import Ledger
from worker.ledger.faults import Refused
from worker.runtime.claims import Claims
from worker.runtime.lease import Lease

logger = logging.getLogger(__name__)

#: Seconds that an idle worker blocks on the bells before it looks for jobs of producers without.
POLL = 0.25
#: Seconds between tries while a store is away.
AWAY_PAUSE = 0.25
#: Longest time, in seconds, that a free slot waits for others while more jobs wait than there are
#: slots: a claim costs about as much for one job as for thirty.
GATHER = 0.005


class Source(Protocol):
    """Where claims come from: the doorbells, or the ledger's suspects."""

    def take(self, lease: str, most: int) -> list[Claim]:
        """Up to `most` claims under `lease`; waits a moment when there is nothing.

        Raises:
                Unavailable: a store is away.
        """
        ...


class DoorbellSource:
    """Claims of the jobs whose doorbells are popped from this worker's queues.

    `put_off` is told what was asked for and what was granted: the rest may be unknown here.
    """

    def __init__(
        self,
        ledger: Ledger,
        doorbells: Doorbells,
        claims: Claims,
        queues: Callable[[], list[str]],
        *,
        adopt_foreign: bool,
        payload_max_bytes: int,
        put_off: Callable[[Sequence[str], Sequence[Claim]], None] = lambda ids, granted: None,
    ) -> None:
        self._ledger = ledger
        self._doorbells = doorbells
        self._claims = claims
        self._queues = queues
        self._put_off = put_off
        self._adopt_foreign = adopt_foreign
        self._payload_max_bytes = payload_max_bytes
        self._turn = 0

    def take(self, lease: str, most: int) -> list[Claim]:
        """See `Source`."""
        queues = self._queues()
        if not queues:
            return []
        popped = self._doorbells.pop(self._lists(queues), most)
        if not popped:
            self._doorbells.wait(queues, POLL)
            queues = self._queues()  # one of them may be consumed no more
            popped = self._doorbells.pop(self._lists(queues), most) if queues else []
        return self._claim(lease, popped) if popped else []

    def _lists(self, queues: Sequence[str]) -> list[str]:
        """Every list, by priority, and within a priority from another queue each time."""
        self._turn += 1
        turn = self._turn % len(queues)
        ordered = [lists_of(queue) for queue in (*queues[turn:], *queues[:turn])]
        return [lists[step] for step in range(len(ordered[0])) for lists in ordered]

    def _claim(self, lease: str, popped: Sequence[Popped]) -> list[Claim]:
        rung, foreign = self._read(popped)
        ids = self._claims.reserve(rung)
        own = [item for item in popped if not item.tag]
        granted = self._granted(ids, own, lambda: claim(self._ledger, lease, ids))
        try:
            granted += self._claim_foreign(lease, foreign)
        except Exception as exc:
            if not granted:
                raise
            # What is granted already must be delivered: nobody else can run it.
            fault = None if isinstance(exc, LedgerError) else exc
            logger.warning("%d foreign entries wait: %s", len(foreign), exc, exc_info=fault)
        try:
            self._put_off([*ids, *(job.id for job, _ in foreign)], granted)
        except Exception:  # what is granted must be delivered, here too
            logger.exception("What was popped and not granted could not be looked at")
        return granted

    def _claim_foreign(self, lease: str, foreign: Sequence[tuple[NewJob, Popped]]) -> list[Claim]:
        ids = self._claims.reserve(job.id for job, _ in foreign)
        entries = [(job, item) for job, item in foreign if job.id in ids]
        items = [item for _, item in foreign]
        granted = self._granted(ids, items, lambda: self._adopt(lease, entries))
        self._acknowledge([item.tag for item in items])
        return granted

    def _granted(
        self, ids: Sequence[str], popped: Sequence[Popped], work: Callable[[], list[Claim]]
    ) -> list[Claim]:
        """What `work` claims of the reserved `ids`, entered in the inventory.

        When Postgres is away `popped` is put back; popped again, an id is found to be ours if the
        claim was committed after all.
        """
        granted: list[Claim] = []
        try:
            granted = work()
        except LedgerUnavailable:
            self._doorbells.give_back(popped)
            raise
        finally:
            for item in granted:
                self._claims.grant(item.fence)
            kept = {item.fence.id for item in granted}
            self._claims.drop(job_id for job_id in ids if job_id not in kept)
        return granted

    def _adopt(self, lease: str, entries: Sequence[tuple[NewJob, Popped]]) -> list[Claim]:
        try:
            return adopt(self._ledger, lease, [job for job, _ in entries])
        except Refused as exc:
            if len(entries) == 1:
                self._doorbells.quarantine(entries[0][1], str(exc))
                return []
            # One that Postgres refuses must not keep the others out.
            return [item for entry in entries for item in self._adopt(lease, [entry])]

    def _read(self, popped: Sequence[Popped]) -> tuple[list[str], list[tuple[NewJob, Popped]]]:
        rung: list[str] = []
        foreign: list[tuple[NewJob, Popped]] = []
        for item in popped:
            ring = ring_of(item.list, item.entry)
            if ring is not None:
                rung.append(ring.id)
                continue
            try:
                foreign.append((self._foreign(item), item))
            except LedgerError as exc:
                self._doorbells.quarantine(item, str(exc))
        return rung, foreign

    def _foreign(self, item: Popped) -> NewJob:
        if not self._adopt_foreign:
            raise LedgerError("WORKER_ADOPT_FOREIGN is off.")
        job = foreign_job(item.list, item.entry)
        if len(job.message.body) > self._payload_max_bytes:
            raise LedgerError(f"The payload has {len(job.message.body)} bytes, over the limit.")
        return job

    def _acknowledge(self, tags: Sequence[str]) -> None:
        try:
            self._doorbells.acknowledge(tags)
        except LedgerError as exc:
            # They come back, and find that their rows are there.
            logger.warning("%d entries could not be acknowledged: %s", len(tags), exc)


class Fetcher:
    """The thread that turns free slots into claimed jobs.

    Args:
        source: where claims come from.
        claims: the inventory.
        lease: under which they are claimed.
        may_claim: False while finishes wait for Postgres: they go first.
        deliver: takes what was claimed; called from this thread.
    """

    def __init__(
        self,
        source: Source,
        claims: Claims,
        lease: Lease,
        may_claim: Callable[[], bool],
        deliver: Callable[[list[Claim]], None],
    ) -> None:
        self._source = source
        self._claims = claims
        self._lease = lease
        self._may_claim = may_claim
        self._deliver = deliver
        self._may_fetch = threading.Event()
        self._stopped = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._is_full = False  # the last round took a job for every free slot
        self._goal = 1  # free slots that the next round waits for, if it was
        #: Why nothing can be fetched, as long as it cannot.
        self.trouble: LedgerError | None = None
        self._turned = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="fetcher", daemon=True)

    def start(self) -> None:
        """Start the thread; it fetches once `resume` is called."""
        self._thread.start()

    def resume(self) -> None:
        """Fetch from now on."""
        self._turned = time.monotonic()
        self._may_fetch.set()

    def pause(self) -> None:
        """Fetch nothing from now on; a claim under way is still delivered."""
        self._may_fetch.clear()

    @property
    def is_paused(self) -> bool:
        """Whether it was told to fetch nothing."""
        return not self._may_fetch.is_set()

    def stands_still(self, seconds: float) -> bool:
        """Whether it has begun no round for over `seconds`, though it may fetch."""
        return not self.is_paused and time.monotonic() - self._turned > seconds

    def stop(self, seconds: float) -> bool:
        """Fetch nothing ever again; wait for a claim under way. Whether none is left."""
        self._stopped.set()
        self._may_fetch.set()
        self._claims.wake()
        return self._idle.wait(seconds)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._may_fetch.wait()
            self._turned = time.monotonic()
            self._idle.clear()
            try:
                if self._fetch_once() and self.trouble is not None:
                    logger.info("Both stores answer again; fetching.")
                    self.trouble = None
            except LedgerError as exc:
                if self.trouble is None:
                    logger.warning("Fetching pauses: %s", exc)
                self.trouble = exc
                if isinstance(exc, LedgerUnavailable):
                    self._lease.report_away()
                self._stopped.wait(AWAY_PAUSE)
            except Exception:
                logger.exception("Fetching failed, trying again")
                self.trouble = LedgerError("a fault of our own")
                self._stopped.wait(AWAY_PAUSE)
            finally:
                self._idle.set()

    def _fetch_once(self) -> bool:
        """One round; whether it came so far as to ask both stores."""
        free = self._free()
        # After an outage: renew first, then flush the finishes, then claim (PROTOCOL 12).
        if not free or not self._lease.wait(0.5):
            return False
        if not self._may_claim() or not self._lease.clock.is_ahead():
            self._stopped.wait(0.02)
            return False
        if self._stopped.is_set() or not self._may_fetch.is_set() or self._lease.id is None:
            return False
        claimed = self._source.take(self._lease.id, free)
        self._is_full = len(claimed) >= free
        if claimed:
            self._deliver(claimed)
        return True

    def _free(self) -> int:
        """Free slots: as soon as there is one, or, while more jobs wait than that, a good part.

        The goal follows what gets free in time: where long jobs hold the other slots, few do.
        """
        free = self._claims.wait_for_slots(1, 0.5)
        if not free or not self._is_full:
            return free
        free = self._claims.wait_for_slots(self._goal, GATHER)
        if free < self._goal:
            self._goal = max(1, self._goal // 2)
        elif free > self._goal:
            self._goal = max(1, min(2 * free, self._claims.slots // 2))
        return free
