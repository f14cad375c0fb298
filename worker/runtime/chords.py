"""A chord whose body cannot run: every job that the body names ends, and is known by its task."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from celery.exceptions import ChordError

from worker.jobs.continuations import Later, named_jobs
from worker.jobs.job import Ended
from worker.runtime.execution import current

#: While a chord fails: the jobs of its body that have not ended yet.
_failing: ContextVar[dict[str, Later] | None] = ContextVar("failing_chord", default=None)


def fail_chord(backend: Any, fail: Callable[..., Any], callback: Any, exc: Any) -> Any:
    """Fail a chord's body by Celery's `chord_error_from_stack`, and what that leaves out.

    Celery knows only ids there, and not those of all the jobs of a body.

    Args:
        backend: the result backend.
        fail: Celery's method, which calls the errbacks and marks failures by `backend`.
        callback: the signature of the body.
        exc: why; the exception being handled if it is `None`.
    """
    exc = exc or sys.exc_info()[1] or ChordError("the chord failed")
    unended = {later.id: later for later in named_jobs(callback)}
    token = _failing.set(unended)
    try:
        answer = fail(callback, exc)
        for job_id in list(unended):
            backend.mark_as_failure(job_id, exc)
        return answer
    finally:
        _failing.reset(token)


def as_named(ended: Ended) -> Ended | None:
    """`ended` with what the failing chord says of it; `None` for a group's id, and for one that
    has ended already."""
    unended = _failing.get()
    if unended is None:
        return ended
    later = unended.pop(ended.id, None)
    if later is None:
        return None
    execution = current()
    parent = execution.fence.id if execution is not None else None
    return replace(
        ended, task=later.task, queue=later.queue, group_id=later.group_id, parent_id=parent
    )
