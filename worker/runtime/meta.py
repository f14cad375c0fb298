"""A job of the ledger in the words of Celery's result API."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from celery import states

from worker.jobs.job import Ended, Finish, Job
from worker.jobs.states import State
from worker.runtime.execution import ERROR_LIMIT, TRACEBACK_LIMIT, clean
from worker.runtime.outcome import describe

TO_CELERY: Final = {
    State.SUCCEEDED: states.SUCCESS,
    State.FAILED: states.FAILURE,
    State.CANCELLED: states.REVOKED,
}
FROM_CELERY: Final = {
    states.SUCCESS: State.SUCCEEDED,
    states.FAILURE: State.FAILED,
    states.REVOKED: State.CANCELLED,
}


#: The content type of an ignored result; a failure's exception is kept all the same.
IGNORED: Final = "ignored"


class JobFailed(Exception):
    """What `AsyncResult.get` raises for a job that failed without an exception of its own."""


def celery_state(job: Job) -> str:
    """The job's state in Celery's words, as a backend of stock Celery would have stored it.

    It stores nothing of a job that waits, nor of one that runs unless that is tracked, nor of a
    result that is ignored; and what a task said of itself stands until something else is stored.
    The part of a group has ended for those who wait for the group, whatever it ignores.
    """
    if job.state.is_final and job.result_type == IGNORED and job.group_id is None:
        return job.progress_state or states.PENDING
    if job.state.is_final:
        return TO_CELERY[job.state]
    if job.progress_state:
        return job.progress_state
    # A retry leaves the exception where the result will be.
    return states.PENDING if job.result is None else states.RETRY


def meta_of(job: Job, decode: Callable[[bytes], Any]) -> dict[str, Any]:
    """What `AsyncResult` reads of the job; an exception stands in it as Celery stores one."""
    ended = job.finished_at if job.state.is_final else None
    state = celery_state(job)
    meta = {
        "task_id": job.id,
        "status": state,
        "result": _result_of(job, decode),
        "traceback": job.traceback if state in states.EXCEPTION_STATES else None,
        "date_done": ended.isoformat() if ended else None,
    }
    correlated = {"parent_id": job.parent_id, "group_id": job.group_id}
    return meta | {name: value for name, value in correlated.items() if value}


def extended_meta_of(job: Job, decode: Callable[[bytes], Any]) -> dict[str, Any]:
    """What `result_extended` adds."""
    try:
        args, kwargs, *_ = decode(job.message.body)
    except Exception:  # whatever a foreign producer has sent
        args = kwargs = None
    headers = json.loads(job.message.envelope).get("headers") or {}
    extended = {
        "name": job.task,
        "args": args,
        "kwargs": kwargs,
        "worker": job.worker,
        "retries": headers.get("retries") or 0,
        "queue": job.queue,
    }
    if names := headers.get("stamped_headers"):
        stamps = headers.get("stamps") or {}
        extended |= {"stamped_headers": names}
        extended |= {name: stamps[name] for name in names if name in stamps}
    return extended


def meta_of_end(end: Finish, decode: Callable[[bytes], Any]) -> tuple[str, Any, str | None]:
    """State, result and traceback of an end that is decided, and not in the ledger yet."""
    state = TO_CELERY.get(end.state)
    result = None if end.result is None else decode(end.result)
    if state is None:
        state = states.PENDING if end.result is None else states.RETRY
    elif end.result_type == IGNORED:
        state, result = states.PENDING, None
    elif state == states.REVOKED:
        result = _exception("TaskRevokedError", "celery.exceptions", end.error)
    elif state == states.FAILURE and end.result is None:
        result = _exception(JobFailed.__name__, __name__, end.error)
    return state, result, end.traceback


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
    state = celery_state(job)
    kept = job.progress if state == job.progress_state else job.result
    return None if kept is None or state == states.PENDING else decode(kept)


def _exception(name: str, module: str, message: str | None) -> dict[str, Any]:
    return {"exc_type": name, "exc_message": [message], "exc_module": module}
