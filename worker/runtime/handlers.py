"""The user's code that runs after a task, and the end that is committed before it runs.

Celery calls `on_success`, `after_return`, the receivers of `task_postrun` and their like once it
has stored the result. What such code tells others, a browser that then asks for the state, must be
true in every process. So where there is such code, the process that ran the attempt commits its
end, under the same fence, before the code is called. Everywhere else the worker's writer commits
many ends at once, and nobody waits.

What is relied on of Celery 5.7 is pinned by tests/runtime/test_handlers.py.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.app.task import Task
from celery.utils.objects import mro_lookup

from worker.broker.doorbells import Doorbells
from worker.errors import LedgerError, Unavailable
from worker.jobs.job import Fence, Ring
from worker.ledger.database import Ledger
from worker.ledger.finish import finish
from worker.runtime.claims import Phase
from worker.runtime.execution import Execution
from worker.runtime.ringer import Ringer

if TYPE_CHECKING:
    from worker.runtime.process import Process

logger = logging.getLogger(__name__)

#: Seconds for which no end is committed first once Postgres was found away.
AWAY_PAUSE = 5.0
#: Task classes that are remembered; an app may make them without end.
CLASSES = 4096
#: Longest time, in seconds, that the event loop waits for an end which handlers shall find.
LOOP_SECONDS = 0.5


class End:
    """One way in which an attempt ends: the hooks of the task and the signals that come after it.

    Not an enum's value: every job asks for these, and an enum's hash and value are calls.
    """

    def __init__(self, hooks: tuple[str, ...], watched: tuple[Any, ...]) -> None:
        self.hooks, self.watched = hooks, watched
        self._overridden: dict[Any, bool] = {}

    def is_overridden(self, cls: Any) -> bool:
        """Whether a task class has one of the hooks of its own."""
        known = self._overridden.get(cls)
        if known is None:
            if len(self._overridden) >= CLASSES:
                self._overridden.clear()
            known = self._overridden[cls] = any(
                mro_lookup(cls, hook, stop={Task, object}, monkey_patched=["celery.app.task"])
                is not None
                for hook in self.hooks
            )
        return known


class Ends:
    """The ways in which an attempt ends."""

    SUCCESS = End(("on_success", "after_return"), (signals.task_success, signals.task_postrun))
    FAILURE = End(("on_failure", "after_return"), (signals.task_failure, signals.task_postrun))
    RETRY = End(("on_retry",), (signals.task_retry, signals.task_postrun))
    REVOKED = End((), (signals.task_revoked,))
    ALL = (SUCCESS, FAILURE, RETRY, REVOKED)


def has_handlers(task: Any, end: End) -> bool:
    """Whether code of the user's runs after `task` has ended so; asked for every job.

    Celery's own receivers do not count: its Django fixup closes connections after each task.
    """
    if end.is_overridden(task.__class__):  # a proxy's is its task's
        return True
    for signal in end.watched:
        if signal.receivers and any(  # nearly always there is none
            not str(getattr(receiver, "__module__", "")).startswith("celery.")
            for receiver in signal._live_receivers(task)
        ):
            return True
    return False


def settle(process: Process, fence: Fence, rings: Sequence[Ring]) -> None:
    """Let a worker go of an attempt whose end is in the ledger already, then push its doorbells."""
    process.health.turned()  # as where an end is handed over: in the solo pool it held up the loop
    process.claims.move(fence, Phase.ENDED)
    process.claims.settle(fence)
    process.ringer.put(rings)


def await_commit(process: Process, fence: Fence) -> bool:
    """Wait until the worker's writer has committed an end that the worker itself has decided: a
    revoke, a hard time limit. At most `LOOP_SECONDS`, because this holds up the event loop, and not
    while Postgres is known to be away: of a hundred revokes each would wait as long.

    Returns:
        Whether it is committed, or refused for good.
    """
    deadline = time.monotonic() + LOOP_SECONDS
    while process.claims.fence_of(fence.id) == fence:
        is_away = process.writer.failing or not process.lease.is_held
        if is_away or time.monotonic() > deadline:
            return False
        time.sleep(0.001)  # the inventory wakes those who wait for slots, and nobody for one job
    return True


class EarlyEnds:
    """Commits ends before the handlers run, and rings for what follows from them.

    Args:
        ledger: this process's door to the ledger, opened when first used.
        doorbells: opens doorbells.
    """

    def __init__(self, ledger: Callable[[], Ledger], doorbells: Callable[[], Doorbells]) -> None:
        self._ledger, self._doorbells = ledger, doorbells
        self._lock = threading.Lock()
        self._ringer: tuple[int, Ringer] | None = None
        self._not_before = 0.0

    def commit(self, execution: Execution) -> None:
        """Commit the end that `execution` has decided; without Postgres, leave it to the writer.

        An end that its fence refuses is left too: the worker's writer drops and counts it.
        """
        if not execution.is_decided or execution.committed or time.monotonic() < self._not_before:
            return
        end = execution.finish()
        try:
            done = finish(self._ledger(), [end])
        except LedgerError as exc:
            if isinstance(exc, Unavailable):
                self._not_before = time.monotonic() + AWAY_PAUSE
            logger.warning(
                "The end of job %s is committed after its handlers, not before them: %s",
                end.fence.id, exc,
            )  # fmt: skip
            return
        if end.fence.id not in done.granted:
            execution.is_stale = True
            return
        # The job's own doorbell waits until this worker has let go of the attempt: if it were
        # popped here before that, it would be dropped.
        execution.commit(tuple(ring for ring in done.rings if ring.id == end.fence.id))
        if others := [ring for ring in done.rings if ring.id != end.fence.id]:
            self.ring(others)

    def ring(self, rings: Sequence[Ring]) -> None:
        """Push doorbells, best effort, by a thread of this process."""
        with self._lock:
            if self._ringer is None or self._ringer[0] != os.getpid():  # a thread is not forked
                self._ringer = os.getpid(), Ringer(self._doorbells())
                self._ringer[1].start()
            self._ringer[1].put(rings)
