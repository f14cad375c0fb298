"""What this worker does not know: put off, and said once for each task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from worker.errors import LedgerError
from worker.jobs.job import Claim
from worker.ledger.database import Ledger
from worker.ledger.strangers import PutOff, put_off

logger = logging.getLogger(__name__)

#: Tasks that one worker names in its log; a stranger may send any number of names.
SAID = 1000


class Strangers:
    """Puts off jobs whose task this worker does not know.

    Args:
        ledger: where.
        tasks: the names of those that it knows, asked each time.
    """

    def __init__(self, ledger: Ledger, tasks: Callable[[], Collection[str]]) -> None:
        self._ledger, self._tasks = ledger, tasks
        self._said: set[tuple[str, bool]] = set()

    def put_off(self, ids: Sequence[str], granted: Sequence[Claim]) -> None:
        """Put off those of `ids` that were not `granted`, are queued and of an unknown task.

        Never raises: what is not put off now is rung for again, as any lost doorbell.
        """
        kept = {claim.fence.id for claim in granted}
        denied = [job_id for job_id in ids if job_id not in kept]
        if not denied:
            return
        try:
            for told in put_off(self._ledger, denied, self._tasks()):
                self._say(told)
        except LedgerError as exc:
            logger.warning("%d doorbells were popped for nothing: %s", len(denied), exc)

    def _say(self, told: PutOff) -> None:
        if (told.task, told.is_served) in self._said:
            return
        if len(self._said) >= SAID:
            return
        self._said.add((told.task, told.is_served))
        if told.is_served:
            logger.warning(
                "This worker does not know the task %r; its jobs go to the workers of the same"
                " queue that do. To each app a queue of its own is faster.", told.task,
            )  # fmt: skip
        else:
            logger.error("Jobs wait: %s.", told.why)
