"""The group-committing writer: hands over one attempt's end, commits all that are pending."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from worker.errors import Unavailable
from worker.jobs.job import Finish, Ring
from worker.jobs.states import State
from worker.ledger.batches import batches
from worker.ledger.database import Ledger
from worker.ledger.effort import Effort
from worker.ledger.faults import NotDone, Refused
from worker.ledger.finish import finish
from worker.ledger.insert import size_of
from worker.ledger.silence import patient

logger = logging.getLogger(__name__)

#: Ends in one transaction.
BATCH = 500
#: Seconds that a busy writer gathers ends for; whoever waits for a result waits so much longer.
GATHER = 0.01
#: Seconds between tries while Postgres is away, doubling.
FIRST_PAUSE, LAST_PAUSE = 0.05, 2.0

#: Told after each commit: what was written, what was stale, which doorbells to push.
OnWritten = Callable[[Sequence[Finish], Sequence[Finish], Sequence[Ring]], None]


class Writer:
    """Writes ends in the order they come, many in one transaction.

    Nobody waits for it: the lease covers the gap, a crash re-runs and never loses. An idle writer
    commits a lone end at once; a busy one what came while it was committing and in the `GATHER`
    after. While Postgres is away it keeps everything and tries again for ever; what Postgres cannot
    do in time is tried in smaller parts.

    Args:
        ledger: where.
        on_written: called from the writer's thread after each commit.
        may_write: asked before each try; False holds the ends back, as while the lease is not
            known to be renewed after an outage.
    """

    def __init__(
        self, ledger: Ledger, on_written: OnWritten, may_write: Callable[[], bool] = lambda: True
    ) -> None:
        self._ledger = ledger
        self._on_written = on_written
        self._may_write = may_write
        self._pending: list[Finish] = []
        self._changed = threading.Condition()
        self._writing = 0
        self._closing = False
        self._retry_now = threading.Event()
        self._effort = Effort(BATCH)
        self.failing = False
        self._progress = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, end: Finish) -> None:
        """Hand over an attempt's end; returns at once."""
        with self._changed:
            if not self._pending and not self._writing:
                self._progress = time.monotonic()  # it has not waited while there was nothing
            self._pending.append(end)
            if len(self._pending) in (1, BATCH):  # a busy writer is not woken for each
                self._changed.notify_all()

    @property
    def backlog(self) -> int:
        """Ends that are not committed yet."""
        with self._changed:
            return len(self._pending) + self._writing

    def is_stalled(self, seconds: float) -> bool:
        """Whether ends have waited over `seconds` for a reason other than Postgres being away."""
        seconds *= self._effort.times
        return self.backlog > 0 and time.monotonic() - self._progress > seconds

    def flush(self, seconds: float) -> bool:
        """Wait until everything handed over is committed, at most `seconds`; whether it is."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._pending and not self._writing, timeout=seconds
            )

    def stop(self) -> None:
        """Stop after what is pending is committed; what Postgres refuses to take now is left."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def retry_now(self) -> None:
        """Postgres is back, or the lease is renewed: do not wait out the pause."""
        self._retry_now.set()

    def _run(self) -> None:
        is_busy = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing)
                if not self._pending:
                    return
                if is_busy:
                    self._changed.wait_for(self._is_enough, timeout=GATHER)
                batch = next(batches(self._pending, BATCH, _size_of))
                del self._pending[: len(batch)]
                self._writing = len(batch)
                self._progress = time.monotonic()
            try:
                for part in _parts(batch):
                    self._write(part)
            finally:
                with self._changed:
                    self._writing = 0
                    is_busy = bool(self._pending)
                    self._changed.notify_all()

    def _is_enough(self) -> bool:
        return len(self._pending) >= BATCH or self._closing

    def _write(self, batch: list[Finish]) -> None:
        while batch:
            done = self._write_part(batch)
            batch = batch[done:]

    def _write_part(self, batch: list[Finish]) -> int:
        """Write as many from the front of `batch` as can be done at once; how many were."""
        pause, at_fault = FIRST_PAUSE, False
        while True:
            part = batch[: self._effort.size]
            try:
                # While the fault is our own, the lease is let go: waiting for it would be for ever.
                if at_fault or self._may_write():
                    with patient(self._effort.times):
                        self._write_once(part)
                    self._effort.done()
                    self._went_well()
                    return len(part)
                self._progress = time.monotonic()
            except Unavailable as exc:
                if isinstance(exc, NotDone):
                    self._effort.too_much(len(part))
                if not self.failing or isinstance(exc, NotDone):
                    logger.warning("%d results wait for Postgres: %s", len(part), exc)
                self.failing, at_fault = True, False
                self._progress = time.monotonic()
            except Exception:
                # A fault of our own must not end the thread: the jobs would stay running for ever.
                # Nor is it progress, until an end is written or Postgres is found to be away.
                at_fault = True
                logger.exception("%d results could not be written, trying again", len(part))
                self.failing = True
            self._retry_now.wait(pause)
            self._retry_now.clear()
            pause = min(pause * 2, LAST_PAUSE)

    def _went_well(self) -> None:
        self._progress = time.monotonic()
        self.failing = False

    def _write_once(self, batch: list[Finish]) -> None:
        try:
            done = finish(self._ledger, batch)
        except Refused as exc:
            self._isolate(batch, exc)
            return
        written = [end for end in batch if end.fence.id in done.granted]
        stale = [end for end in batch if end.fence.id not in done.granted]
        self._on_written(written, stale, done.rings)

    def _isolate(self, batch: list[Finish], refusal: Refused) -> None:
        """Halve a refused batch until the refused end stands alone; it fails, the rest does not."""
        if len(batch) > 1:
            half = len(batch) // 2
            self._write_once(batch[:half])
            self._write_once(batch[half:])
            return
        end = batch[0]
        if end.state is State.FAILED and end.error == str(refusal):
            raise refusal
        logger.error("The end of job %s is refused: %s", end.fence.id, refusal)
        self._write_once(
            [
                replace(
                    end, state=State.FAILED, outcome="failed", result=None, result_type=None,
                    error=str(refusal), traceback=None, children=None, delay=None,
                    replacement=None, outbox=(), ended=(),
                )
            ]
        )  # fmt: skip


def _parts(batch: list[Finish]) -> list[list[Finish]]:
    """`batch` in statements, which hold a job once each; attempts of one job keep their order.

    Of two ends of one attempt the first one counts.
    """
    parts: list[dict[str, Finish]] = []
    seen: dict[str, int] = {}
    for end in reversed({end.fence: end for end in reversed(batch)}.values()):
        number = seen.get(end.fence.id, -1) + 1
        seen[end.fence.id] = number
        if number == len(parts):
            parts.append({})
        parts[number][end.fence.id] = end
    return [list(part.values()) for part in parts]


def _size_of(end: Finish) -> int:
    jobs = (*end.outbox, end.replacement) if end.replacement else end.outbox
    return len(end.result or b"") + len(end.traceback or "") + sum(map(size_of, jobs))
