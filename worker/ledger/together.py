"""Group commit: jobs that many threads enqueue one by one, committed many at a time.

There is no thread for it, and nothing waits for company. Who finds nobody committing commits, its
own job alone when it is alone. Who comes meanwhile stands in line, and when that commit is done
the first in line commits all that stand there. So a commit holds what came during the one before.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Final

from worker.errors import Conflict, Unavailable
from worker.jobs.ids import checked_id
from worker.jobs.job import Enqueued, NewJob, Ring
from worker.ledger.batches import batches
from worker.ledger.database import Ledger
from worker.ledger.enqueue import BATCH, enqueue
from worker.ledger.faults import NotDone, Silent
from worker.ledger.insert import size_of

#: Seconds in line after which a caller commits what stands there, whoever else is committing: one
#: commit that is held up, as by somebody else's transaction with its key, holds up no other.
TURN: Final = 0.1
#: Seconds after which a caller gives up the one who commits its job, and commits it by itself. No
#: commit takes so long, and who is interrupted says so; only a second interrupt can prevent that.
ABANDONED: Final = 300.0


@dataclass(slots=True, eq=False)
class _Request:
    """A caller's job, and what the caller is told.

    Attributes:
        outcome: what became of the job; `None`: unknown, or a job beside it was refused.
        is_told: whether `outcome` is final.
        news: set when it is, and when the caller's turn to commit has come.
        batch: what the caller commits, itself first.
    """

    job: NewJob
    outcome: Enqueued | Conflict | Unavailable | None = None
    is_told: bool = False
    news: threading.Event = field(default_factory=threading.Event)
    batch: list[_Request] = field(default_factory=list)


class _Line:
    """Whose jobs wait in one process, and who commits."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.RLock()  # a signal handler may enqueue while its thread is here
        self._waiting: dict[_Request, None] = {}  # in the order in which they came
        self._committing: _Request | None = None

    def join(self, request: _Request) -> bool:
        """Stand in line; whether it is one's turn at once."""
        with self._lock:
            self._waiting[request] = None
            if self._committing is None:
                self._committing = request
            return self._committing is request

    def take(self, request: _Request) -> bool:
        """Let its caller commit those in line, itself first; False, when somebody else has it.

        A batch has an id once: then its answers are those that its jobs would get one by one.
        """
        with self._lock:
            if request not in self._waiting:
                return False
            self._committing = request
            if len(self._waiting) == 1:  # and here most are alone
                self._waiting.clear()
                request.batch = [request]
                return True
            of_each_id = {request.job.id: request}
            for other in list(self._waiting):  # a handler of this thread may take some
                of_each_id.setdefault(other.job.id, other)
            request.batch = next(batches(of_each_id.values(), BATCH, _size_of))
            for one in request.batch:
                self._waiting.pop(one, None)
            return True

    def pass_on(self, request: _Request) -> None:
        """Its caller has committed: it is the turn of the next one."""
        with self._lock:
            if self._committing is request:
                self._committing = next(iter(self._waiting), None)
                if self._committing is not None:
                    self._committing.news.set()

    def leave(self, request: _Request) -> None:
        """Its caller goes, and tells those whose jobs it had taken."""
        with self._lock:
            self._waiting.pop(request, None)
            self.pass_on(request)
            batch, request.batch = request.batch, []
        for one in batch:
            one.is_told = True
            one.news.set()


class GroupCommit:
    """Enqueues single jobs for any number of threads; after a fork, the child begins anew.

    A caller waits `TURN` at the most until its job is being committed, and then for one commit. It
    waits for a second one, of its job alone, when Postgres refused a batch because of one job in
    it, or when the caller that committed it was interrupted.

    Args:
        ledger: where.
        on_committed: given the doorbells of a batch before its callers are answered, by the thread
            that committed it; meanwhile the next batch is committed.
    """

    def __init__(
        self, ledger: Ledger, on_committed: Callable[[Sequence[Ring]], object] | None = None
    ) -> None:
        self._ledger = ledger
        self._on_committed = on_committed
        self._line = _Line()

    def enqueue(self, job: NewJob) -> Enqueued:
        """Insert `job`, committed when this returns; see `worker.ledger.enqueue.enqueue`.

        Raises:
            MalformedId: the ledger cannot hold its id.
            Conflict: another job has its id or key.
            Refused: Postgres refuses it.
            Unavailable: Postgres is away; the same job may be sent again.
        """
        checked_id(job.id)
        line, request = self._line_of_this_process(), _Request(job)
        try:
            self._see_to(request, line)
        finally:
            line.leave(request)
        if request.outcome is None:
            self._commit([request])
        if isinstance(request.outcome, Enqueued):
            return request.outcome
        assert request.outcome is not None
        raise copy(request.outcome)  # a traceback is one thread's own

    def _see_to(self, request: _Request, line: _Line) -> None:
        """Return when `request` has its outcome, or gets none from others any more."""
        if not line.join(request):
            request.news.wait(TURN)
        if line.take(request):
            self._commit(request.batch, lambda: line.pass_on(request))
            return
        while not request.is_told:
            request.news.clear()  # it may still say that the turn had come
            if not request.is_told and not request.news.wait(ABANDONED):
                return

    def _commit(self, batch: list[_Request], then: Callable[[], None] = lambda: None) -> None:
        rings: list[Ring] = []
        for request, outcome in zip(batch, self._committed(batch), strict=True):
            request.outcome = outcome
            if isinstance(outcome, Enqueued) and outcome.ring is not None:
                rings.append(outcome.ring)
        then()
        if rings and self._on_committed is not None:
            self._on_committed(rings)

    def _committed(
        self, batch: list[_Request]
    ) -> Sequence[Enqueued | Conflict | Unavailable | None]:
        try:
            return enqueue(self._ledger, [request.job for request in batch])
        except Exception as exc:
            if len(batch) == 1:
                raise
            # Halving a refused batch would take as many round trips, one after the other, with all
            # waiting for it. Each caller by itself finds whether the fault is its own: a value that
            # Postgres refuses, or a key that somebody else's transaction holds up.
            may_be_its_own = isinstance(exc, NotDone) and not isinstance(exc, Silent)
            is_away = isinstance(exc, Unavailable) and not may_be_its_own
            return [copy(exc) if is_away else None] * len(batch)  # type: ignore[list-item] # see above

    def _line_of_this_process(self) -> _Line:
        line = self._line
        if line.pid != os.getpid():  # a fork took neither those in line nor the lock's holder
            line = self._line = _Line()
        return line


def _size_of(request: _Request) -> int:
    return size_of(request.job)
