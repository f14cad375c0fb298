"""Run one claimed job: the function that a worker hands to its pool, in every kind of pool."""

from __future__ import annotations

import logging
from typing import Any

from billiard.common import terminate_handler_fired
from celery import _state, current_app
from celery.app import trace as celery_trace
from celery.exceptions import Ignore, Reject, WorkerShutdown, WorkerTerminate
from celery.worker import state as worker_state

from worker.jobs.job import Fence, Finish
from worker.jobs.states import State
from worker.runtime.clock import LeaseClock
from worker.runtime.execution import TRACEBACK_LIMIT, Execution, running
from worker.runtime.outcome import (
    REJECTED,
    Traced,
    describe,
    exception_of,
    exit_code,
    text_of,
    traceback_of,
    traced,
)

logger = logging.getLogger(__name__)

#: The exit code of a child that was terminated while it ran a job.
TERMINATED = 143

#: Longest wait, in seconds, before a job whose task this process does not know is tried again.
NOT_HERE_CAP = 60.0

#: What `Task.on_replace` of Celery 5.7 raises `Ignore` with; a contract test pins it.
REPLACED = "Replaced by new task"


def run_claimed(
    clock: LeaseClock,
    fence: Fence,
    task: str,
    request: dict[str, Any],
    body: Any,
    content_type: str | None,
    content_encoding: str | None,
) -> Traced:
    """Run `task` as the attempt of `fence`, unless it may not be ours any more."""
    if not clock.may_start(fence):
        # This process was stopped or cut off: somebody else may be running the job by now. Or it
        # was cancelled.
        return Traced(0, None, None, None)
    app = _own_app()
    app.set_current()
    tracer = (
        celery_trace.fast_trace_task if app.use_fast_trace_task else celery_trace.trace_task_ret
    )
    with running(fence) as execution:
        try:
            if not _is_ready(app, task, request):
                raise _NotHere(task)
            failed, value, runtime = tracer(
                task, fence.id, request, body, content_type, content_encoding, app=app
            )
            if not execution.is_decided:
                _decide(execution, value)
        except _NotHere as exc:
            failed, value, runtime = 1, exc, None
            execution.give_back(str(exc), _pause(fence))
        except (WorkerShutdown, WorkerTerminate) as exc:
            # Its worker ends as it asked, and the job with it: run again, it would end each
            # worker in turn.
            failed, value, runtime = 1, exc, None
            execution.retry = None
            execution.fail(None, None, describe(exc), traceback_of(exc))
            worker_state.should_stop = exit_code(exc.code)
        except BaseException as exc:
            if terminate_handler_fired():
                raise  # this child is being terminated: the job did not end, its process does
            # Celery lets a MemoryError take down the whole worker, sys.exit() its child, and takes
            # what is no Exception, as asyncio's CancelledError, for the loss of a process.
            failed, value, runtime = 1, exc, None
            execution.retry = None
            execution.fail(None, None, describe(exc), traceback_of(exc))
    end = execution.finish()
    if execution.committed is not None:
        short = Finish(fence, end.state, end.outcome)  # nothing of it is written any more
        return traced(failed, value, runtime, short, execution.rings)
    if terminate_handler_fired() and end.state is not State.SUCCEEDED:
        raise SystemExit(TERMINATED)  # it failed because it was being terminated
    return traced(failed, value, runtime, end)


class _NotHere(Exception):
    """The worker has learned the task since it started this process."""

    def __init__(self, task: str) -> None:
        super().__init__(
            f"the task {task!r} was registered after this process of the worker was started;"
            " restart the worker, or register the task where the app is made"
        )


def _is_ready(app: Any, name: str, request: dict[str, Any]) -> bool:
    """Whether this process knows the task. Celery makes those ready that it finds when the worker
    starts; one that was registered since is made ready here, the same way."""
    task = app.tasks.get(name)
    if task is None:
        return False
    if task.__trace__ is None:
        task.__trace__ = celery_trace.build_tracer(
            name, task, app.loader, request.get("hostname"), app=app
        )
    return True


def _pause(fence: Fence) -> float:
    """Seconds until another process of the worker, or another worker, may have the task."""
    return min(NOT_HERE_CAP, 0.5 * 2.0 ** min(fence.attempt, 10))


def _own_app() -> Any:
    """The worker's app. Celery has made it the default; a task of an earlier job may have made
    another one this thread's current app, which `Celery(…)` alone does."""
    default: Any = vars(_state)["default_app"]  # Celery's, which its stubs do not know
    if default is not None and default.use_fast_trace_task:
        return default
    return current_app._get_current_object()  # type: ignore[attr-defined] # a proxy


def _decide(execution: Execution, value: Any) -> None:
    """End an attempt for which Celery marks nothing: Ignore, Reject, an error of its own."""
    exc = exception_of(value)
    if isinstance(exc, Ignore):
        if REPLACED in str(exc):
            execution.await_replacement()
        else:
            execution.ignore()
    elif isinstance(exc, Reject):
        reason = REJECTED + text_of(lambda: str(exc.reason))
        if exc.requeue:
            execution.give_back(reason)
        else:
            backend = _own_app().backend
            kept = backend._encoded_exception(exc), backend.content_type
            execution.fail(*kept, reason, text_of(lambda: value.traceback, TRACEBACK_LIMIT, ""))
    else:
        text = describe(exc) if isinstance(exc, BaseException) else "the task ended without a word"
        execution.fail(None, None, text, getattr(value, "traceback", None))
