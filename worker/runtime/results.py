"""The result backend: Celery's words for how a task ended become the ledger's finish."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery import states
from celery.backends.base import BaseBackend
from celery.exceptions import TimeoutError
from celery.result import result_from_tuple
from kombu.exceptions import EncodeError

from worker.errors import Conflict, LedgerError, NotFound
from worker.jobs.job import Fence
from worker.ledger.change import cancel, forget
from worker.ledger.finish import note_progress
from worker.ledger.groups import delete_group, read_group, save_group
from worker.ledger.insert import insert_ended
from worker.ledger.read import read
from worker.runtime.execution import ERROR_LIMIT, Execution, clean, current, running
from worker.runtime.meta import FROM_CELERY, children_of, ended_of, meta_of
from worker.runtime.outcome import describe

logger = logging.getLogger(__name__)

#: Seconds between the first looks of `AsyncResult.get`, doubling up to its `interval`.
FIRST_LOOK = 0.005


class LedgerBackend(BaseBackend):  # type: ignore[misc] # Celery's class is not typed
    """Reads from the ledger; writes through the attempt's fence.

    `mark_as_*` are overridden whole, because `store_result` is never called for a success whose
    result is ignored, nor by default for a retry. In the process that runs a task they only note
    the end (`worker.runtime.execution`); in the worker's main process, where Celery reports a
    revoke, a hard time limit or an unreadable answer, they hand it to the writer.
    """

    supports_autoexpire = True  # the keeper's retention does it

    @property
    def _ledger(self) -> Any:
        return self.app.ledger.ledger

    @contextmanager
    def _attempt(self, task_id: str) -> Iterator[Execution | None]:
        """The attempt that is ending: the one running here, or one that this worker holds."""
        execution = current()
        if execution is not None and execution.fence.id == task_id:
            execution.ending = True
            yield execution
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
        with self._attempt(task_id) as execution:
            if execution is None:
                if store_result:  # not for a task that was applied eagerly
                    self._insert_ended(
                        task_id, state, self._encoded(result, state), request=request
                    )
                return
            encoded = self._encoded(result, state) if wanted else None
            children = self._children(request)
            execution.succeed(encoded, self.content_type if encoded is not None else None, children)
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
        with self._attempt(task_id) as execution:
            if execution is None:
                if store_result:  # not for a task that was applied eagerly
                    encoded = self._encoded_exception(exc)
                    self._insert_ended(task_id, state, encoded, exc, text, request)
                return
            execution.fail(self._encoded_exception(exc), self.content_type, describe(exc), text)
            if request is None:
                return
            if request.chord:
                self.on_chord_part_return(request, state, exc)
            self._fail_chain(getattr(request, "chain", None), exc, text, state=state)
            if call_errbacks and request.errbacks:
                self._call_task_errbacks(request, exc, text)

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
        if execution is not None and execution.fence.id == task_id:
            execution.note_retry(describe(exc) if exc is not None else "retry", _text(traceback))

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:
        """Cancel the job: one that this worker holds, or one that waits in the ledger."""
        with self._attempt(task_id) as execution:
            if execution is not None:
                execution.cancel(str(reason) or "revoked")
                return
        try:
            cancel(self._ledger, task_id, str(reason) or "revoked", running=False)
        except (NotFound, Conflict) as exc:
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
        """Keep a custom state as progress; a final state of another job ends that job.

        Raises:
            EncodeError: JSON cannot hold `result`, or it is too large.
        """
        if state == states.STARTED:
            return result
        encoded = self._encoded(result, state)
        text = _text(traceback)
        exc = result if isinstance(result, BaseException) else None
        execution = current()
        if execution is not None and execution.fence.id == task_id:
            if state in FROM_CELERY:
                error = describe(exc) if exc is not None else None
                execution.announce(FROM_CELERY[state], encoded, self.content_type, error, text)
            self._progress(execution, encoded, state)
        elif state in FROM_CELERY:
            self._insert_ended(task_id, state, encoded, exc, text, request)
        return result

    def _progress(self, execution: Execution, encoded: bytes, state: str) -> None:
        fence = execution.fence
        try:
            note_progress(self._ledger, fence.id, fence.attempt, fence.lease, encoded, state)
        except LedgerError as exc:
            # A task must not fail because it could not say how far it has come.
            logger.warning("The progress of job %s is not recorded: %s", fence.id, exc)

    def _insert_ended(
        self,
        task_id: str,
        state: str,
        encoded: bytes,
        exc: BaseException | None = None,
        traceback: str | None = None,
        request: Any = None,
    ) -> None:
        ended = ended_of(task_id, state, encoded, self.content_type, exc, traceback, request)
        execution = current()
        if execution is not None and execution.ending:
            execution.ended.append(ended)
            return
        self._ledger.run(lambda connection: insert_ended(connection, [ended]))

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

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        job = read(self._ledger, task_id)
        if job is None:
            return {"status": states.PENDING, "result": None, "traceback": None, "children": []}
        children = [result_from_tuple(child, self.app) for child in children_of(job)]
        return dict(self.meta_from_decoded({**meta_of(job, self.decode), "children": children}))

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """The job's meta once it has ended; looks often at first, then every `interval` seconds.

        Raises:
            celery.exceptions.TimeoutError: it has not ended within `timeout` seconds.
        """
        self._ensure_not_eager()
        deadline = None if timeout is None else time.monotonic() + timeout
        nap = min(FIRST_LOOK, interval)
        while True:
            meta: dict[str, Any] = self.get_task_meta(task_id)
            if meta["status"] in states.READY_STATES:
                return meta
            if on_interval:
                on_interval()
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("The operation timed out.")
            time.sleep(nap if left is None else min(nap, left))
            nap = min(nap * 2, interval)

    def _forget(self, task_id: str) -> None:
        forget(self._ledger, task_id)

    def _save_group(self, group_id: str, result: Any) -> Any:
        encoded = self.encode(self.prepare_value(result))
        save_group(
            self._ledger, group_id, encoded if isinstance(encoded, bytes) else encoded.encode()
        )
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        encoded = read_group(self._ledger, group_id)
        if encoded is None:
            return None
        return {"task_id": group_id, "result": result_from_tuple(self.decode(encoded), self.app)}

    def _delete_group(self, group_id: str) -> None:
        delete_group(self._ledger, group_id)


def _text(traceback: Any) -> str | None:
    return None if traceback is None else str(traceback)
