"""A worker's health: what it tells a probe, when it stops to renew, when it ends itself."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery.concurrency.solo import TaskPool as Solo

from worker.broker.doorbells import Doorbells
from worker.errors import (
    BrokerUnavailable,
    ConfigurationError,
    LedgerError,
    LedgerRefused,
    LedgerUnavailable,
)
from worker.ledger.database import Ledger
from worker.runtime.claims import Phase
from worker.telemetry.health import HealthServer
from worker.telemetry.watchdog import Watchdog

if TYPE_CHECKING:
    from worker.runtime.process import Process

#: Threads without which a worker is of no use; each of them catches what its work raises.
CRITICAL = ("fetcher", "lease", "ledger-writer")
#: Seconds between two beats of the event loop.
BEAT = 1.0
#: Seconds that a round of calls to stores may take: the system's lookup of names knows no timeout
#: of ours, and takes two minutes where it tries several domains, twice.
CALL_SECONDS = 300.0
#: Seconds between two questions to Redis while the event loop stands still.
ASK_EVERY = 2.0
_LEDGER_AWAY = "Postgres does not answer."


class Health:
    """Whether a worker process lives, and whether it works.

    What is *wedged* has made no progress for longer than `limit` while Postgres answers: the event
    loop, the writer of results, the fetcher, the lease, or a thread of these that has died. A store
    that is away wedges nothing: each call to one has an end, and is tried again for ever. Nothing
    is a fault while the worker drains: that has an end too. The event loop calls Redis too, to hear
    what it is told by remote control, and is down while the broker connection is lost; whether that
    is what keeps it, a thread with a connection of its own finds out.

    Args:
        process: whose health it is.

    Attributes:
        limit: seconds without progress; two leases, and more than calls to silent stores may take.
        call_limit: the same for a thread whose round is calls to stores, and little else.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        settings = process.settings
        self.limit = max(2 * settings.lease_seconds, 6 * settings.connect_timeout_seconds)
        self.call_limit = max(self.limit, CALL_SECONDS)
        # Renewals stop at the first sign. A lease later others have the jobs.
        self.watchdog = Watchdog(self._faults, settings.lease_seconds, lambda: process.owns_process)
        self._turned = self._answered = self._asked = 0.0
        self._rung = -math.inf  # when Redis answered last,
        self._rings_since = math.inf  # and since when it has answered each time
        self._beat: Any = None
        self._threads: list[threading.Thread] = []
        self.server: HealthServer | None = None

    def serve(self) -> None:
        """Open the port of the settings, if they name one.

        Raises:
            InvalidSettings: it is taken.
        """
        settings = self._process.settings
        if settings.health_port is None or settings.isolated:  # which has its parent's environment
            return
        host, port = settings.health_host, settings.health_port
        self.server = HealthServer(host, port, self.live, self.ready)
        self.server.start()

    def watch(self) -> None:
        """Watch the worker's threads, once they run."""
        named = {thread.name: thread for thread in threading.enumerate()}
        self._threads = [named[name] for name in CRITICAL if name in named]
        self._answered = self._asked = self.watchdog.now()
        self.watchdog.start()
        threading.Thread(target=self._ask, name="second opinion", daemon=True).start()

    def stop(self) -> None:
        """The worker is over, in a process that is not."""
        self.watchdog.stop()
        if self.server is not None:
            self.server.close()

    def start(self, hub: Any) -> None:
        """Let the event loop beat from now on; on its thread, after each of its connections."""
        if self._beat is not None:
            self._beat.cancel()
        self._beat = hub.call_repeatedly(BEAT, self._process.beat)
        self.turned()

    def turned(self) -> None:
        """The event loop turns; told on its thread."""
        self._turned = self.watchdog.now()

    def answered(self) -> None:
        """Postgres answers, all that a renewal asks."""
        self._answered = self.watchdog.now()

    def may_renew(self, ledger: Ledger) -> bool:
        """Whether the lease may be renewed: whoever is wedged must let others have its jobs."""
        self._asked = self.watchdog.now()
        if not self.watchdog.faults:
            return True
        with suppress(LedgerError):
            ledger.execute("SELECT 1")  # while it answers, the fault is our own
            self.answered()
        return False

    def live(self) -> tuple[str, ...]:
        """Why this process should be started again."""
        return self.watchdog.faults

    def ready(self) -> tuple[str, ...]:
        """Why this worker takes no jobs now, or cannot record them."""
        return (*self.watchdog.faults, *self._hindrances())

    def _hindrances(self) -> Iterator[str]:
        process = self._process
        if not process.is_started:
            yield process.opening.waits_for or "The worker is starting, or waits for Redis."
            return
        if process.drain.is_draining:
            yield "The worker is shutting down."
            return
        renewed = self._since_answer() <= process.settings.lease_seconds
        if not (process.lease.is_held and renewed) and not self.watchdog.faults:
            yield f"The lease is not renewed: {_LEDGER_AWAY}"
        if process.is_suspended:
            # For a while after the loss nobody has asked it, and it counts as silent.
            answers = "answers" if self._redis_answers() else "does not answer"
            yield f"The broker connection is lost; Redis {answers}."
        elif process.fetcher.is_paused:
            yield "Nothing is fetched: the consumer was told so."
        if process.fetcher.trouble is not None and process.claims.free():
            yield f"Nothing is fetched: {_said(process.fetcher.trouble)}"
        if not process.may_claim():
            yield "Results wait to be written; nothing is fetched before they are."

    def _faults(self) -> list[str]:
        process = self._process
        if not process.is_started or process.drain.is_draining:
            return []
        faults = [
            f"The thread {thread.name!r} has died."
            for thread in self._threads
            if not thread.is_alive()
        ]
        if self.watchdog.now() - self._asked > self.call_limit:
            faults.append(f"The lease's thread has made no round for over {self.call_limit:g} s.")
        if self._since_answer() <= process.settings.lease_seconds:
            faults += self._standstills()
        return faults

    def _standstills(self) -> Iterator[str]:
        process = self._process
        limit = self.limit if self._redis_answers() else self.call_limit
        if process.is_suspended:
            if self._redis_answers() and self.watchdog.now() - self._rings_since > self.call_limit:
                yield (
                    "The broker connection does not come back, though Redis has answered for over"
                    f" {self.call_limit:g} s."
                )
        elif self._loop_stands_still(limit):
            yield f"The event loop has not turned for over {limit:g} s."
        if process.writer.is_stalled(self.limit):
            yield f"No result could be written for over {self.limit:g} s."
        if process.fetcher.stands_still(self.call_limit):
            yield f"The fetcher has made no round for over {self.call_limit:g} s."

    def _loop_stands_still(self, limit: float) -> bool:
        process = self._process
        if self.watchdog.now() - self._turned <= limit:
            return False
        # In the solo pool jobs run on the loop's thread.
        return not (
            isinstance(process.controller.pool, Solo)
            and any(entry.phase is Phase.STARTED for entry in process.claims.entries())
        )

    def _redis_answers(self) -> bool:
        timeout = self._process.settings.connect_timeout_seconds
        return self.watchdog.now() - self._rung <= 2 * ASK_EVERY + timeout

    def _ask(self) -> None:
        """Ask Redis while the event loop is late, as it does: by the name and a new connection."""
        settings = self._process.settings
        while not self.watchdog.wait(ASK_EVERY):
            if not self._loop_stands_still(self.limit / 2):
                self._rings_since = math.inf
                continue
            doorbells = Doorbells(
                settings.redis_url.get_secret_value(), settings.connect_timeout_seconds
            )
            try:
                doorbells.ping()
            except LedgerError:
                self._rings_since = math.inf
            else:
                self._rung = self.watchdog.now()
                self._rings_since = min(self._rings_since, self._rung)
            doorbells.close()

    def _since_answer(self) -> float:
        return self.watchdog.now() - self._answered


def _said(trouble: LedgerError) -> str:
    """Why it does not go, without the addresses that a driver's error names."""
    if isinstance(trouble, LedgerRefused):
        return "Postgres refuses the role, its password or the database."
    if isinstance(trouble, LedgerUnavailable):
        return _LEDGER_AWAY
    if isinstance(trouble, BrokerUnavailable):
        return "Redis does not answer, or refuses."
    return str(trouble) if isinstance(trouble, ConfigurationError) else "the log says why."
