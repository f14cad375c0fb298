"""A job of the ledger in the words of Celery's result API."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from celery import states

from worker.jobs.job import Ended, Job
from worker.jobs.states import State
from worker.runtime.execution import ERROR_LIMIT, TRACEBACK_LIMIT, clean
from worker.runtime.outcome import describe

TO_CELERY: Final = {
    State.RUNNING: states.STARTED,
    State.SUCCEEDED: states.SUCCESS,
    State.FAILED: states.FAILURE,
    State.CANCELLED: states.REVOKED,
}
FROM_CELERY: Final = {
    states.SUCCESS: State.SUCCEEDED,
    states.FAILURE: State.FAILED,
    states.REVOKED: State.CANCELLED,
}


class JobFailed(Exception):
    """What `AsyncResult.get` raises for a job that failed without an exception of its own."""


def celery_state(job: Job) -> str:
    """The job's state in Celery's words."""
    if job.state is State.RUNNING and job.progress_state:
        return job.progress_state
    if job.state in (State.SCHEDULED, State.QUEUED):
        return states.RETRY if job.attempt else states.PENDING
    return TO_CELERY[job.state]


def meta_of(job: Job, decode: Callable[[bytes], Any]) -> dict[str, Any]:
    """What `AsyncResult` reads of the job; an exception stands in it as Celery stores one."""
    return {
        "task_id": job.id,
        "status": celery_state(job),
        "result": _result_of(job, decode),
        "traceback": job.traceback,
        "date_done": job.finished_at.isoformat() if job.finished_at else None,
        "name": job.task,
        "worker": job.worker,
        "queue": job.queue,
        "retries": max(0, job.attempt - 1),
        "parent_id": job.parent_id,
        "group_id": job.group_id,
    }


def ended_of(
    task_id: str,
    state: str,
    encoded: bytes,
    content_type: str,
    exc: BaseException | None,
    traceback: str | None,
    request: Any,
) -> Ended:
    """A job that ends without having been enqueued, from what Celery's backend is told of it."""
    return Ended(
        task_id,
        str(getattr(request, "task", None) or "unknown"),
        FROM_CELERY.get(state, State.FAILED),
        encoded,
        content_type,
        clean(describe(exc), ERROR_LIMIT) if exc is not None else None,
        clean(traceback, TRACEBACK_LIMIT),
        getattr(request, "parent_id", None),
        getattr(request, "root_id", None),
        getattr(request, "group", None),
    )


def children_of(job: Job) -> list[Any]:
    """The children of the job's last run, as `ResultBase.as_tuple` gives them."""
    return list(json.loads(job.children or "[]"))


def _result_of(job: Job, decode: Callable[[bytes], Any]) -> Any:
    if job.state is State.CANCELLED:
        return _exception("TaskRevokedError", "celery.exceptions", job.error)
    if job.state is State.FAILED and job.result is None:
        return _exception(JobFailed.__name__, __name__, job.error)
    if job.state.is_final:
        return None if job.result is None else decode(job.result)
    return None if job.progress is None else decode(job.progress)


def _exception(name: str, module: str, message: str | None) -> dict[str, Any]:
    return {"exc_type": name, "exc_message": [message], "exc_module": module}
