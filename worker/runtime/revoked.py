"""`task_revoked` for jobs that were revoked, or expired, while they waited.

Celery sends it in the worker that finds such a message. Here the ledger cancels the job, and no
worker may be there. So it is sent by the worker that pops the job's doorbell and is denied the
claim: once, as long as the doorbell is neither lost nor doubled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.utils.collections import LimitedSet

from worker.errors import LedgerError
from worker.jobs.job import Claim, Fence, Job
from worker.jobs.states import State
from worker.ledger.read import read_many

if TYPE_CHECKING:
    from worker.runtime.process import Process

logger = logging.getLogger(__name__)

#: How many jobs are remembered, so that a doubled doorbell sends nothing twice.
REMEMBERED = 10_000

PutOff = Callable[[Sequence[str], Sequence[Claim]], None]


def telling(process: Process, put_off: PutOff) -> PutOff:
    """`put_off`, which is called with what was popped and what was granted of it; then the signal
    for what was denied because it is cancelled."""
    told = LimitedSet(maxlen=REMEMBERED)

    def told_off(ids: Sequence[str], granted: Sequence[Claim]) -> None:
        put_off(ids, granted)
        kept = {claim.fence.id for claim in granted}
        denied = [job_id for job_id in ids if job_id not in kept and job_id not in told]
        if not denied or not (process.copies.are_made or _is_heard(process)):
            return
        try:
            jobs = read_many(process._ledger, denied)
        except LedgerError as exc:
            logger.warning("task_revoked is not sent for %d jobs: %s", len(denied), exc)
            return
        ended = [job.id for job in jobs if job.state in (State.CANCELLED, State.FAILED)]
        process.copies.put(ended)
        for job in filter(_waited, jobs):
            told.add(job.id)
            process._hub.call_soon(_tell, process.controller.consumer, job)

    return told_off


def _is_heard(process: Process) -> bool:
    return bool(signals.task_revoked.receivers) or process.controller.consumer.announcer.enabled


def _waited(job: Job) -> bool:
    """Whether it was cancelled while it waited: else the worker that ran it has sent the signal."""
    if job.state is not State.CANCELLED or not job.queue:
        return False
    return not job.attempts or job.attempts[-1].outcome != "cancelled"


def _tell(consumer: Any, job: Job) -> None:
    """On the event loop's thread, as Celery does."""
    task = consumer.app.tasks.get(job.task)
    if task is None:
        return
    expired = (job.error or "").startswith("expired")
    try:
        claim = Claim(Fence(job.id, job.attempt, ""), job.task, job.queue, job.message)
        request = consumer._request(claim, task)
    except Exception as exc:  # whatever stands in the row
        logger.warning("task_revoked is not sent for job %s: %r", job.id, exc)
        return
    # Listeners may hear of this job for the first time: it was never received.
    request.send_event(
        "task-revoked", terminated=False, signum=None, expired=expired,
        name=request.name, args=request.argsrepr, kwargs=request.kwargsrepr,
        root_id=request.root_id, parent_id=request.parent_id,
    )  # fmt: skip
    signals.task_revoked.send(
        sender=task, request=request._context, terminated=False, signum=None, expired=expired
    )
