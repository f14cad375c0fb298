"""The task that calls the errbacks of a job that failed where no Celery app was at hand."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from celery import Celery
from celery.app.task import Context
from kombu.exceptions import OperationalError

from worker.errors import Unavailable
from worker.jobs.continuations import CALL_ERRBACKS
from worker.runtime.meta import JobFailed

#: Seconds before a call that failed because a store was away is made again.
AGAIN_SECONDS = 5.0


def add_errback_task(app: Celery) -> None:
    """Let `app` know the task, as it knows `celery.chord_unlock`.

    A poison job's errbacks, say, are not called by the keeper that condemns it, which knows no
    tasks, nor by the process that lost its child, which must outlive any errback.
    """

    @app.task(name=CALL_ERRBACKS, bind=True, shared=False, ignore_result=True, max_retries=None)
    def call_errbacks(self: Any, call: dict[str, Any]) -> None:
        """Call errbacks as Celery calls them beside the failure: old style and new style."""
        backend = self.backend
        request = Context({**call["request"], "errbacks": call["errbacks"], "delivery_info": {}})
        try:
            backend._call_task_errbacks(request, _exception(backend, call), call.get("traceback"))
        except (Unavailable, OperationalError) as exc:
            # Anything else would come again each time, such as an errback for a queue that is not
            # declared: it fails this job, for people to see. What an errback raises is only logged.
            raise self.retry(exc=exc, countdown=AGAIN_SECONDS) from exc


def _exception(backend: Any, call: dict[str, Any]) -> BaseException:
    """What the job failed with: its own exception, or one that says how it ended."""
    if call.get("result") is not None:
        with suppress(Exception):  # a class that is not known here, or cannot be made again
            found = backend.exception_to_python(backend.decode(call["result"]))
            if isinstance(found, BaseException):
                return found
    return JobFailed(call.get("error") or "the job failed")
