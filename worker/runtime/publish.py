"""What the transport does with a task message: make it a row, or part of an attempt's end."""

from __future__ import annotations

from celery.app import amqp

from worker.errors import Conflict, TooLarge
from worker.jobs.job import NewJob, Ring
from worker.ledger.database import Ledger
from worker.ledger.enqueue import enqueue
from worker.runtime.execution import current


class Publisher:
    """The writer that the transport calls for every task message.

    Args:
        ledger: where rows go.
        payload_max_bytes: the largest body accepted.
    """

    def __init__(self, ledger: Ledger, payload_max_bytes: int) -> None:
        self._ledger = ledger
        self._payload_max_bytes = payload_max_bytes

    def __call__(self, job: NewJob) -> Ring | None:
        """Make `job` durable; the doorbell to push, `None` when there is none to push now.

        Raises:
            TooLarge: its body is over the limit.
            Conflict: another job has its id.
            Unavailable: Postgres is away; nothing was accepted.
        """
        size = len(job.message.body)
        if size > self._payload_max_bytes:
            raise TooLarge(
                f"The payload has {size} bytes, the limit is {self._payload_max_bytes}; store"
                " large data elsewhere and pass a reference, or raise WORKER_PAYLOAD_MAX_BYTES."
            )
        execution = current()
        if execution is not None and job.id == execution.fence.id:
            # The task's own id: Task.retry or Task.replace. It becomes part of the finish, so that
            # a retry is never enqueued by an attempt that is stale, nor lost by one that dies.
            execution.retry = job
            return None
        if execution is not None and (execution.ending or after_return()):
            execution.outbox.append(job)
            return None
        (answer,) = enqueue(self._ledger, [job])
        if isinstance(answer, Conflict):
            raise answer
        return answer.ring


def after_return() -> bool:
    """Whether Celery's tracer is publishing what follows a task's return: links and the chain.

    Celery 5.7 sets this private variable for just that time; a contract test pins it.
    """
    return bool(amqp._callback_publish_retry.get())
