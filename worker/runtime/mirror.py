"""The mirror: an app's own result backend, whose rows its pages read, is written beside the ledger.

This is best effort: the ledger decides, and is what is read. What ends in no task of the app, such
as a job that the keeper fails or an operator cancels, is written by the worker that learns of it:
see `worker.runtime.copies`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from celery import Celery, states
from celery.app import backends
from celery.app.task import Context
from celery.exceptions import TaskRevokedError
from kombu.utils.objects import cached_property

from worker.jobs.job import Job
from worker.ledger.read import read_many
from worker.runtime.configuration import MIRRORED, own_backend
from worker.runtime.meta import extended_meta_of, meta_of
from worker.runtime.results import LedgerBackend

logger = logging.getLogger(__name__)


class MirroredBackend(LedgerBackend):
    """The ledger's backend, which tells the app's own one of each state that Celery tells it."""

    @cached_property  # type: ignore[untyped-decorator] # kombu is not typed
    def _own(self) -> Any:
        find: Any = backends.by_url  # its stubs have it that it returns a class alone
        made, url = find(own_backend(self.app), self.app.loader)
        return made(app=self.app, url=url)

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        state: str = states.SUCCESS,
    ) -> None:
        """As `LedgerBackend`."""
        super().mark_as_done(task_id, result, request, store_result, state)
        if store_result:
            self._copy(task_id, result, state, None, request)

    def mark_as_failure(
        self,
        task_id: str,
        exc: BaseException,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        """As `LedgerBackend`."""
        super().mark_as_failure(
            task_id, exc, traceback, request, store_result, call_errbacks, state
        )
        if store_result:
            self._copy(task_id, exc, state, traceback, request)

    def mark_as_retry(
        self,
        task_id: str,
        exc: BaseException,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        state: str = states.RETRY,
    ) -> None:
        """As `LedgerBackend`."""
        super().mark_as_retry(task_id, exc, traceback, request, store_result, state)
        self._copy(task_id, exc, state, traceback, request)

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:
        """As `LedgerBackend`."""
        super().mark_as_revoked(task_id, reason, request, store_result, state)
        self._copy(task_id, TaskRevokedError(reason), state, None, request)

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As `LedgerBackend`."""
        answer = super().store_result(task_id, result, state, traceback, request, **kwargs)
        self._copy(task_id, result, state, traceback, request)
        return answer

    def copy_ends(self, ids: Sequence[str], *, anew: bool) -> None:
        """Write how these jobs have ended, as the ledger has it; see `Copies.put`.

        Raises:
            Unavailable: Postgres is away.
        """
        try:
            for job in read_many(self._ledger, ids):
                if job.state.is_final:
                    self._try(job.id, partial(self._copy_end, job, anew))
        finally:
            django = sys.modules.get("django.db")
            if django is not None:  # nobody tells this thread when a request has ended
                django.connections.close_all()

    def _copy_end(self, job: Job, anew: bool) -> None:
        meta = meta_of(job, self.decode)
        state, result, request = meta["status"], meta["result"], self._request_of(job)
        if state not in states.READY_STATES or request.ignore_result:
            return
        if not anew and self._own.get_task_meta(job.id, cache=False)["status"] == state:
            return
        if state in states.EXCEPTION_STATES:
            result = self.exception_to_python(result)
        self._own.store_result(job.id, result, state, traceback=meta["traceback"], request=request)

    def _request_of(self, job: Job) -> Any:
        """What a task's own request says to a backend."""
        headers = json.loads(job.message.envelope).get("headers") or {}
        told = extended_meta_of(job, self.decode)
        request = Context(headers, args=told["args"], kwargs=told["kwargs"], hostname=job.worker)
        task = self.app.tasks.get(job.task)
        if request.ignore_result is None or "ignore_result" not in headers:
            request.ignore_result = getattr(task, "ignore_result", False)
        return request

    def _forget(self, task_id: str) -> None:
        super()._forget(task_id)
        self._try(task_id, lambda: self._own.forget(task_id))

    def _copy(self, task_id: str, result: Any, state: str, traceback: Any, request: Any) -> None:
        if getattr(request, "ignore_result", False) and state == states.SUCCESS:
            return
        self._try(
            task_id,
            lambda: self._own.store_result(
                task_id, result, state, traceback=traceback, request=request
            ),
        )

    def _try(self, task_id: str, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as exc:  # whatever it is: the job's end is decided
            logger.warning(
                "Job %s is not written to the app's own result backend (%s); the ledger has it.",
                task_id, type(exc).__name__,
            )  # fmt: skip


def backend_class(app: Celery) -> type[LedgerBackend]:
    """The backend for `app`, by what it says of its own one."""
    return MirroredBackend if own_backend(app) in MIRRORED else LedgerBackend
