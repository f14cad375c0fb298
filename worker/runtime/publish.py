"""What the transport does with a task message: make it a row, or part of an attempt's end."""

from __future__ import annotations

import json

from celery import current_task
from celery.app import amqp

from worker.errors import Conflict, TooLarge
from worker.jobs.job import NewJob, Ring
from worker.ledger.database import Ledger
from worker.ledger.together import GroupCommit
from worker.runtime.execution import current


class Publisher:
    """The writer that the transport calls for every task message.

    Args:
        ledger: where rows go.
        payload_max_bytes: the largest body accepted.
    """

    def __init__(self, ledger: Ledger, payload_max_bytes: int) -> None:
        self._together = GroupCommit(ledger)
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
        if execution is not None and execution.committed is not None:
            # A handler enqueues: its task's end is in the ledger, and nothing joins it any more.
            if job.id == execution.fence.id:
                raise Conflict(
                    f"Job {job.id} has ended already; a handler cannot retry it: retry inside of"
                    " the task, or send a new one."
                )
            return self._together.enqueue(job).ring
        if execution is not None and job.id == execution.fence.id:
            # The task's own id: Task.retry or Task.replace. It becomes part of the finish, so that
            # a retry is never enqueued by an attempt that is stale, nor lost by one that dies.
            execution.retry = job
            return None
        if execution is not None and execution.is_stale:
            # The end was refused and is dropped; what a handler then sends is not.
            return self._together.enqueue(job).ring
        if execution is not None and (
            execution.ending or after_return() or replaces_running_task(job)
        ):
            execution.outbox.append(job)
            return None
        return self._together.enqueue(job).ring


def replaces_running_task(job: NewJob) -> bool:
    """Whether `job` belongs to the canvas by which the running task replaces itself.

    It must not start before the task's own end is written: its last step brings the message of the
    very job that is still running. Celery counts the replacements in a header; what joins a chord
    has none, and tells of its body. Enqueued alone by an attempt that dies, it would wait for ever.
    """
    headers = json.loads(job.message.envelope)["headers"]
    nesting = headers.get("replaced_task_nesting") or _nesting_of_body(job) or 0
    request = current_task.request if current_task else None
    return bool(nesting > (getattr(request, "replaced_task_nesting", 0) or 0))


def _nesting_of_body(job: NewJob) -> int | None:
    if job.task != "celery.chord_unlock":
        return None
    try:
        options = json.loads(job.message.body)[0][1]["options"]
        return int(options.get("replaced_task_nesting") or 0)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None  # of another serializer than JSON


def after_return() -> bool:
    """Whether Celery's tracer is publishing what follows a task's return: links and the chain.

    Celery 5.7 sets this private variable for just that time; a contract test pins it.
    """
    return bool(amqp._callback_publish_retry.get())
