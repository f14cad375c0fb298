"""The result backend: Celery's words for how a task ended become the ledger's finish."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import states
from kombu.exceptions import EncodeError

from worker.errors import Conflict, LedgerError, MalformedId
from worker.jobs.job import Fence
from worker.ledger.change import forget
from worker.ledger.ended import insert_ended
from worker.ledger.finish import note_progress
from worker.ledger.progress import note_from_outside, note_started
from worker.ledger.read import read
from worker.ledger.revoke import revoke
from worker.runtime.chords import as_named, fail_chord
from worker.runtime.execution import ERROR_LIMIT, Execution, clean, current, execution_of, running
from worker.runtime.handlers import End, Ends, await_commit, has_handlers
from worker.runtime.meta import FROM_CELERY, IGNORED, ended_of
from worker.runtime.outcome import describe
from worker.runtime.reading import LedgerReader

logger = logging.getLogger(__name__)


class LedgerBackend(LedgerReader):
    """Reads from the ledger; writes through the attempt's fence.

    `mark_as_*` are overridden whole, because `store_result` is never called for a success whose
    result is ignored, nor by default for a retry. In the process that runs a task they only note
    the end (`worker.runtime.execution`); in the worker's main process, where Celery reports a
    revoke, a hard time limit or an unreadable answer, they hand it to the writer.
    """

    _failing = threading.local()

    @contextmanager
    def _attempt(self, task_id: str, end: End, request: Any) -> Iterator[Execution | None]:
        """The attempt that is ending: the one running here, or one that this worker holds.

        Where code of the user's comes after such an end, the end is committed before.
        """
        execution = current()
        if execution is not None and execution.fence.id == task_id:
            execution.ending, execution.request = True, request
            yield execution
            self._commit_first(execution, end, request)
            return
        fence: Fence | None = self.app.ledger.fence_of(task_id)
        if fence is None:
            yield None
            return
        with running(fence) as execution:
            execution.ending = True
            yield execution
        if execution.is_decided:
            self.app.ledger.finish(execution.finish())
            if self._has_handlers(end, request):
                await_commit(self.app.ledger.process, fence)

    def _has_handlers(self, end: End, request: Any) -> bool:
        task = self.app.tasks.get(getattr(request, "task", None))
        return task is not None and has_handlers(task, end)

    def _commit_first(self, execution: Execution, end: End, request: Any) -> None:
        if self._has_handlers(end, request):
            self.app.ledger.early_ends.commit(execution)

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        state: str = states.SUCCESS,
    ) -> None:
        """Note that the task returned `result`.

        Raises:
            EncodeError: JSON cannot hold the result, or it is too large; Celery then fails the
                task with that reason.
        """
        wanted = store_result and not (request is not None and request.ignore_result)
        with self._attempt(task_id, Ends.SUCCESS, request) as execution:
            if execution is None:
                if store_result:  # not for a task that was applied eagerly
                    value = self._encoded(result, state)
                    self._insert_ended(task_id, state, value, request=request)
                return
            # A chord's body gets the value of a part whose own result is ignored.
            kept = wanted or (request is not None and request.chord)
            encoded = self._encoded(result, state) if kept else None
            children = self._children(request)
            execution.succeed(encoded, self.content_type if wanted else IGNORED, children)
            if request is not None and request.chord:
                self.on_chord_part_return(request, state, result)

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
        """Note that the task raised `exc`, with what follows from it for its chain and errbacks."""
        text = _text(traceback)
        running_here = current()
        with self._attempt(task_id, Ends.FAILURE, request) as execution:
            if execution is None:
                if store_result:  # not for a task that was applied eagerly
                    encoded = self._encoded_exception(exc)
                    self._insert_ended(task_id, state, encoded, exc, text, request)
                return
            if execution.committed is not None or execution.is_stale:
                return  # a handler of this failure raised, and Celery tells of it once more
            # Callbacks that a success had published are dropped, and are no children.
            children = None if execution.outbox else self._children(request)
            encoded = self._encoded_exception(exc)
            kind = self.content_type if store_result else IGNORED
            execution.fail(encoded, kind, describe(exc), text, children)
            if request is None:
                return
            if request.chord:
                self.on_chord_part_return(request, state, exc)
            # The ledger does the rest, except for errbacks where the task itself ran.
            if execution is running_here and call_errbacks and request.errbacks:
                self._call_task_errbacks(request, exc, text)
            execution.errbacks_done = execution is running_here or not call_errbacks

    def mark_as_retry(
        self,
        task_id: str,
        exc: BaseException,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        state: str = states.RETRY,
    ) -> None:
        """Note why the task retries; its message is noted already, by the transport."""
        execution = current()
        if execution is None or execution.fence.id != task_id:
            return
        encoded = self._encoded(None, state) if exc is None else self._encoded_exception(exc)
        error = describe(exc) if exc is not None else "retry"
        execution.note_retry(error, _text(traceback), encoded, self.content_type)
        execution.request = request
        self._commit_first(execution, Ends.RETRY, request)

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:
        """Cancel the job: one that this worker holds, or one that waits in the ledger."""
        with self._attempt(task_id, Ends.REVOKED, request) as execution:
            if execution is not None:
                execution.cancel(str(reason) or "revoked")
                return
        try:
            revoke(self._ledger, task_id, str(reason) or "revoked", running=False)
        except (MalformedId, Conflict) as exc:
            logger.info("Nothing to revoke: %s", exc)

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Keep a custom state, whoever says it, while the job has not ended.

        Raises:
            EncodeError: JSON cannot hold `result`, or it is too large.
            Conflict: a final state for a job that waits or runs: only its own attempt can end it.
            Unavailable: Postgres is away; not for a task's own state, which is dropped and logged.
        """
        encoded = self._encoded(result, state)
        text = _text(traceback)
        exc = result if isinstance(result, BaseException) else None
        execution = current() or execution_of(task_id)  # a thread that the task has started
        if execution is not None and execution.fence.id == task_id:
            if state in FROM_CELERY:
                error = describe(exc) if exc is not None else None
                execution.announce(FROM_CELERY[state], encoded, self.content_type, error, text)
            self._progress(execution, encoded, state)
        elif state in FROM_CELERY:
            self._insert_ended(task_id, state, encoded, exc, text, request)
            if not self._follows_an_end():
                self._require_ended(task_id, state, encoded)
        elif not note_from_outside(self._ledger, task_id, encoded, state):
            logger.warning("%s is not kept: job %s is unknown, or has ended.", state, task_id)
        return result

    def _progress(self, execution: Execution, encoded: bytes, state: str) -> None:
        fence = execution.fence
        if execution.committed is not None:
            logger.warning("%s is not kept: job %s has ended.", state, fence.id)
            return
        try:
            if state == states.STARTED:
                note_started(self._ledger, fence.id, fence.attempt, fence.lease, encoded)
            else:
                note_progress(self._ledger, fence.id, fence.attempt, fence.lease, encoded, state)
        except LedgerError as exc:
            # A task must not fail because it could not say how far it has come.
            logger.warning("The progress of job %s is not recorded: %s", fence.id, exc)

    def _fail_chain(self, *args: Any, **kwargs: Any) -> None:
        """Celery's; the steps may have ended already, which is no fault of anybody's."""
        self._failing.chain = True
        try:
            super()._fail_chain(*args, **kwargs)
        finally:
            self._failing.chain = False

    def _follows_an_end(self) -> bool:
        """Whether Celery itself ends another job: the later steps of a chain that fails."""
        execution = current()
        ending = execution is not None and execution.ending
        return ending or getattr(self._failing, "chain", False)

    def _require_ended(self, task_id: str, state: str, encoded: bytes) -> None:
        job = read(self._ledger, task_id)
        if job is not None and (job.state is not FROM_CELERY[state] or job.result != encoded):
            raise Conflict(
                f"{state} of job {task_id} is not kept, because the job is {job.state}: only the"
                " worker that runs a job ends it; revoke it, or store a state of your own name."
            )

    def _insert_ended(
        self,
        task_id: str,
        state: str,
        encoded: bytes,
        exc: BaseException | None = None,
        traceback: str | None = None,
        request: Any = None,
    ) -> None:
        told = ended_of(task_id, state, encoded, self.content_type, exc, traceback, request)
        if (ended := as_named(told)) is None:
            return
        execution = current()
        if execution is not None and execution.ending:
            execution.note_ended(ended)
            return
        self._ledger.run(lambda connection: insert_ended(connection, [ended]))

    def chord_error_from_stack(self, callback: Any, exc: BaseException | None = None) -> Any:
        """Fail the body of a chord unrun, with all that was to follow it; call its errbacks."""
        return fail_chord(self, super().chord_error_from_stack, callback, exc)

    def _encoded(self, result: Any, state: str) -> bytes:
        payload = self.encode(self.encode_result(result, state))
        data: bytes = payload if isinstance(payload, bytes) else payload.encode()
        limit = self.app.ledger.settings.result_max_bytes
        if len(data) > limit:
            raise EncodeError(
                f"The result has {len(data)} bytes, the limit is {limit}; store large data"
                " elsewhere and return a reference, or raise WORKER_RESULT_MAX_BYTES."
            )
        return data

    def _encoded_exception(self, exc: BaseException) -> bytes:
        try:
            return self._encoded(exc, states.FAILURE)
        except Exception:  # whatever its arguments, and what they say of themselves, raise
            # Its arguments cannot be kept; that it happened, and what it said, can.
            kept = {
                "exc_type": type(exc).__qualname__,
                "exc_message": [clean(describe(exc), ERROR_LIMIT)],
                "exc_module": type(exc).__module__,
            }
            return str(self.encode(kept)).encode()

    def _children(self, request: Any) -> str | None:
        children = self.current_task_children(request) if request is not None else None
        return json.dumps(children) if children else None

    def _forget(self, task_id: str) -> None:
        forget(self._ledger, task_id)


def _text(traceback: Any) -> str | None:
    return None if traceback is None else str(traceback)
