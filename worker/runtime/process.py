"""A worker's main process: the threads that fetch, renew, write, ring, and how they end."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

from celery import Celery
from celery.worker.state import maybe_shutdown

from worker.broker.doorbells import Doorbells
from worker.jobs.job import Claim, Fence, Finish, Ring
from worker.jobs.states import State
from worker.ledger.catalogue import publish
from worker.ledger.database import Ledger
from worker.ledger.interrupted import INTERRUPTED
from worker.ledger.migrate import check_schema
from worker.ledger.read import read_many
from worker.ledger.start import Start
from worker.ledger.writer import Writer
from worker.runtime.claims import ANY, Claims, Entry, Phase
from worker.runtime.clock import LeaseClock, share
from worker.runtime.copies import Copies
from worker.runtime.drain import ASKED_SECONDS, Drain
from worker.runtime.fetch import DoorbellSource, Fetcher, Source
from worker.runtime.health import Health
from worker.runtime.install import durability_of
from worker.runtime.isolation import Isolation, pod_of
from worker.runtime.launch import Launcher
from worker.runtime.lease import Lease, LeaseTerms
from worker.runtime.revoked import telling
from worker.runtime.ringer import Ringer
from worker.runtime.signatures import signatures
from worker.runtime.strangers import Strangers
from worker.runtime.suspects import SuspectSource
from worker.runtime.tempdir import remove_temp_dir
from worker.runtime.threads import without_futures
from worker.runtime.tidings import Tidings

logger = logging.getLogger(__name__)

#: Uncommitted ends above which nothing more is claimed.
BACKLOG_LIMIT = 5000
#: Seconds between tries while Postgres is away, or the schema is missing, at the start.
START_PAUSE = 1.0


class Process:
    """Everything durable about one worker process; made before its pool forks.

    Args:
        app: a durable app.
        controller: Celery's WorkController.
    """

    def __init__(self, app: Celery, controller: Any) -> None:
        self.app, self.controller, self.pid = app, controller, os.getpid()
        self.settings = durability_of(app).settings
        self.pod = pod_of(self.settings)
        self.claims = Claims(self._slots)
        self.clock = LeaseClock(self.claims.may_run)
        share(self.clock)
        self.granted: deque[Claim] = deque()
        self.queues: Callable[[], list[str]] = list
        self.receive: Callable[[Claim], None] | None = None
        self.stale_results, self.copies = 0, Copies(app)
        self.opening = Start(self.settings.schema_wait_seconds)
        self.owns_process = False  # else it is somebody else's, and not ours to end
        self.health = Health(self)
        self._suspended, self._started, self._loop_thread = False, False, 0

    def start(self, hub: Any) -> None:
        """Open the lease and start the threads, once; waits while Postgres or the schema is away.

        Raises:
            ConfigurationError: this code does not run on the schema.
        """
        if self._started:
            return
        self._hub = hub
        without_futures(self.controller.pool)
        if self.owns_process:
            remove_temp_dir()
        self._loop_thread = threading.get_ident()
        timeout = self.settings.connect_timeout_seconds
        name = str(self.controller.hostname)
        self._ledger = Ledger.of(self.settings, name, connections=3)
        # A pool of its own: nothing that goes on elsewhere may keep a renewal waiting.
        renewals = Ledger.of(self.settings, f"{name} lease", connections=1)
        self._doorbells = Doorbells(self.settings.redis_url.get_secret_value(), timeout)
        self.ringer = Ringer(self._doorbells)
        self.tidings = Tidings(self.claims, lambda ids: read_many(self._ledger, ids))
        self.writer = Writer(self._ledger, self._on_written, lambda: self.lease.is_held)
        self.lease = Lease(
            renewals,
            LeaseTerms(
                name, lambda: self.queues(), self.settings.lease_seconds,
                bool(self.settings.isolated), self.pod, lambda: list(self.app.tasks),
            ),
            self.claims,
            self.clock,
            lambda: self.health.may_renew(renewals),
            self.finish,
            self._on_stale,
            self._on_renewed,
        )  # fmt: skip
        self._await_ledger()
        self.fetcher = Fetcher(
            self._source(), self.claims, self.lease, self.may_claim, self._deliver
        )
        self.isolation = Isolation(
            self._ledger, lambda: self.queues(), self.claims, lambda: self.lease.id, self.settings,
            self.pod, Launcher(self).launch,
        )  # fmt: skip
        self.drain = Drain(self)
        self._started = True
        self._start_threads()

    def finish(self, end: Finish, *, among: Collection[Phase] = ANY) -> None:
        """Hand over an attempt's end, once: what comes after the first is dropped, and what finds
        the attempt in another phase than `among`."""
        if threading.get_ident() == self._loop_thread:
            self.health.turned()  # before the job is over: in the solo pool it held up the loop
        if self.claims.fence_of(end.fence.id) == end.fence and not self.claims.move(
            end.fence, Phase.ENDED, among=among
        ):
            return
        self.writer.put(end)

    def lose(self, request: Any, error: str) -> None:
        """The child of the request's job died, with this job alone in it: a loss that counts.

        Not while this worker shuts down: then its children die by our hand, or by whoever sent the
        signal to the whole group.
        """
        fence: Fence = request.fence
        if self.drain.is_draining and self.isolation.was_asked(ASKED_SECONDS):
            self.give_back(fence, f"{INTERRUPTED}: {error}")
            return
        if request.lost + 1 < self.settings.lost_limit:
            self.finish(Finish(fence, State.QUEUED, "lost", error=error))
            return
        # The last of its chances: the ledger tells its chain and its errbacks, as of any failure.
        poison = (
            f"poison: {request.lost + 1} attempts were lost with their process, at last: {error}"
        )
        self.finish(Finish(fence, State.FAILED, "lost", error=poison))

    def give_back(self, fence: Fence, reason: str, *, among: Collection[Phase] = ANY) -> None:
        """Let somebody else run a job that does not run here, nor will."""
        self.finish(Finish(fence, State.QUEUED, "released", error=reason), among=among)

    def postpone(self, fence: Fence, reason: str, delay: float) -> None:
        """Let a job that could not be started here come back in `delay` seconds."""
        self.finish(Finish(fence, State.SCHEDULED, "postponed", error=reason, delay=delay))

    def resume(self) -> None:
        """The event loop runs: fetch, and hand over what is claimed; on the loop's thread."""
        self._suspended = False
        self.health.start(self._hub)
        self.hand_over()
        self.fetcher.resume()

    def beat(self) -> None:
        """The event loop turns. What it was told to hand over and forgot is told again."""
        self.health.turned()
        if self.granted:
            self._hub.call_soon(self.hand_over)

    def suspend(self) -> None:
        """The event loop is down, for as long as Redis is: fetch nothing, and let others run what
        was claimed and not handed over."""
        if not self._started:
            return
        self._suspended = True
        self.fetcher.pause()
        self.give_back_undelivered("the worker lost its broker connection")

    def give_back_undelivered(self, reason: str) -> None:
        """Let others run what was claimed and not handed over."""
        while self.granted:
            with suppress(IndexError):  # the loop may take one at the same time
                self.give_back(self.granted.popleft().fence, reason)

    def hand_over(self) -> None:
        """Give what was claimed to Celery; on the event loop's thread."""
        self.health.turned()
        while self.granted:
            try:
                claim = self.granted.popleft()
            except IndexError:  # it was given back at the same time
                return
            if self.drain.is_draining:
                self.give_back(claim.fence, "the worker shut down")
            elif self.receive is not None:
                try:
                    self.receive(claim)
                except BaseException as exc:
                    self.drain.blame_job(claim.fence.id, exc)
                    raise

    @property
    def is_started(self) -> bool:
        """Whether the threads run."""
        return self._started

    @property
    def is_suspended(self) -> bool:
        """Whether the event loop is down because the broker connection is lost."""
        return self._suspended

    def may_claim(self) -> bool:
        """Whether results get written, so that more may come."""
        return not self.writer.failing and self.writer.backlog <= BACKLOG_LIMIT

    def _slots(self) -> int:
        pool = getattr(self.controller, "pool", None)
        return int(getattr(pool, "num_processes", None) or self.controller.concurrency or 1)

    def _source(self) -> Source:
        if self.settings.isolated:
            return SuspectSource(self._ledger, self.claims, lambda: self.queues())
        return DoorbellSource(
            self._ledger,
            self._doorbells,
            self.claims,
            lambda: self.queues(),
            adopt_foreign=self.settings.adopt_foreign,
            payload_max_bytes=self.settings.payload_max_bytes,
            put_off=telling(self, Strangers(self._ledger, lambda: list(self.app.tasks)).put_off),
        )

    def _await_ledger(self) -> None:
        maybe_shutdown()
        while not self.opening.goes(self._open):
            time.sleep(START_PAUSE)
            maybe_shutdown()

    def _open(self) -> None:
        check_schema(self._ledger)
        publish(self._ledger, signatures(self.app), self.queues())
        self.lease.open()

    def _start_threads(self) -> None:
        self.drain.start()
        self.writer.start()
        self.lease.start()
        self.fetcher.start()
        self.isolation.start()
        self.ringer.start()
        self.health.watch()

    def _deliver(self, claims: list[Claim]) -> None:
        # The hub forgets what it was told when its connection breaks; this deque does not.
        self.granted.extend(claims)
        if self._suspended or self.drain.is_draining:
            self.give_back_undelivered("the worker cannot start it now")
            return
        self._hub.call_soon(self.hand_over)

    def _on_renewed(self) -> None:
        self.health.answered()
        self.writer.retry_now()

    def _on_written(
        self, written: Sequence[Finish], stale: Sequence[Finish], rings: Sequence[Ring]
    ) -> None:
        for end in stale:
            self.stale_results += 1
            logger.warning(
                "The %s of job %s, attempt %d, is dropped: it is not this worker's any more.",
                end.outcome, end.fence.id, end.fence.attempt,
            )  # fmt: skip
        self.tidings.settle(written, stale)
        self.copies.put([end.fence.id for end in stale], anew=True)
        self.ringer.put(rings)

    def _on_stale(self, fences: list[Fence]) -> None:
        """The ledger says that these jobs are not ours: cancelled, or rescued meanwhile."""
        entries = {entry.id: entry for entry in self.claims.entries()}
        for fence in fences:
            entry = entries.get(fence.id)
            if entry is None or entry.fence != fence:
                continue
            if not entry.stale:
                entry.stale = True  # a period's grace to end by itself
            elif entry.pid not in (None, self.pid):
                logger.warning("Terminating the child that still runs job %s.", fence.id)
                self._hub.call_soon(self._terminate, entry)

    def _terminate(self, entry: Entry) -> None:
        """End the child that runs a stale job, if it still does; on the event loop's thread."""
        if entry.phase is Phase.STARTED and entry in self.claims.entries():
            self.controller.pool.terminate_job(entry.pid)
