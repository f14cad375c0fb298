"""The reading half of the result backend: what `AsyncResult` and its sets see of the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from celery import states
from celery.backends.base import BaseBackend
from celery.exceptions import TimeoutError
from celery.result import ResultSet, result_from_tuple

from worker.jobs.job import Job
from worker.ledger.database import Ledger
from worker.ledger.groups import delete_group, read_group, save_group
from worker.ledger.read import read, read_many
from worker.runtime.execution import Execution, execution_of
from worker.runtime.meta import children_of, extended_meta_of, meta_of, meta_of_end

#: Seconds between the first looks of `AsyncResult.get`, doubling up to its `interval`.
FIRST_LOOK = 0.005
#: What stock Celery answers for an id of which nothing is stored.
UNKNOWN = {"status": states.PENDING, "result": None}


class LedgerReader(BaseBackend):  # type: ignore[misc] # Celery's class is not typed
    """Reads states, results and groups."""

    supports_autoexpire = True  # the keeper's retention does it
    supports_native_join = (
        True  # one statement for all parts of a set; `get(on_message=…)` needs it
    )
    is_async = True  # a set's `then` is called once its parts are known to have ended

    @property
    def _ledger(self) -> Ledger:
        ledger: Ledger = self.app.ledger.ledger
        return ledger

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:
        """What is known of the job; of an attempt that has just ended here, how it ended.

        Raises:
            Unavailable: Postgres is away.
        """
        execution = execution_of(task_id)
        if execution is not None and execution.is_over:
            return self._meta_of_end(execution)  # not kept: its fence may yet refuse it
        return dict(super().get_task_meta(task_id, cache=cache))

    def _meta_of_end(self, execution: Execution) -> dict[str, Any]:
        state, result, text = meta_of_end(execution.finish(), self.decode)
        meta = self._get_result_meta(result, state, text, execution.request)
        return dict(self.meta_from_decoded({"task_id": execution.fence.id, **meta}))

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        job = read(self._ledger, task_id)
        return dict(UNKNOWN) if job is None else self._meta_of(job)

    def _meta_of(self, job: Job) -> dict[str, Any]:
        meta = meta_of(job, self.decode)
        if meta["status"] == states.PENDING:
            return {**UNKNOWN, "task_id": job.id}
        if self.app.conf.find_value_for_key("extended", "result"):
            meta |= extended_meta_of(job, self.decode)
        children = [result_from_tuple(child, self.app) for child in children_of(job)]
        return dict(self.meta_from_decoded({**meta, "children": children}))

    def wait_for_pending(
        self,
        result: Any,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], None] | None = None,
        on_interval: Callable[[], None] | None = None,
        callback: Callable[[str, Any], None] | None = None,
        propagate: bool = True,
    ) -> Any:
        """The result's value once the job has ended; see `AsyncResult.get`.

        Args:
            result: an `AsyncResult`.
            timeout, interval: seconds.
            no_ack: ignored, as by every backend without a queue.
            on_message: told each state that is seen, and the end.
            on_interval: called before each pause.
            callback: called with the id and the value.
            propagate: raise what the task raised.

        Raises:
            celery.exceptions.TimeoutError: it has not ended within `timeout` seconds.
        """
        meta = self.wait_for(
            result.id,
            timeout=timeout,
            interval=interval,
            on_interval=on_interval,
            on_message=on_message,
        )
        result._maybe_set_cache(meta)
        if result._cache is None:  # it has ended and stock Celery stores nothing of such an end
            if callback is not None:
                callback(result.id, None)
            return None
        return result.maybe_throw(propagate=propagate, callback=callback)

    def is_cached(self, task_id: str) -> bool:
        """True: a look into the ledger is always at hand.

        Celery 5.7 asks this where a chord's header failed, to name the part that did; it would else
        know only parts that succeeded.
        """
        return True

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], None] | None = None,
        on_message: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """The job's meta once it has ended; looks often at first, then every `interval` seconds.

        A job whose result is ignored ends this too, though its state reads PENDING for ever.

        Raises:
            celery.exceptions.TimeoutError: it has not ended within `timeout` seconds.
        """
        found = self.get_many(
            [task_id],
            timeout=timeout,
            interval=interval,
            on_interval=on_interval,
            on_message=on_message,
        )
        _, meta = next(found)
        return meta

    def get_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], None] | None = None,
        on_interval: Callable[[], None] | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Id and meta of each job as it ends; one statement for all that are waited for.

        Raises:
            celery.exceptions.TimeoutError: some have not ended within `timeout` seconds.
        """
        self._ensure_not_eager()
        waiting = list(dict.fromkeys(task_ids))
        deadline = None if timeout is None else time.monotonic() + timeout
        interval = 0.5 if interval is None else interval
        nap = min(FIRST_LOOK, interval)
        told: dict[str, Any] = {}
        while waiting:
            ended, waiting = self._ended_of(waiting, told, on_message)
            yield from ended
            if not waiting:
                return
            if on_interval:
                on_interval()
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("The operation timed out.")
            time.sleep(nap if left is None else min(nap, left))
            nap = min(nap * 2, interval)

    def _ended_of(
        self,
        ids: list[str],
        told: dict[str, Any],
        on_message: Callable[[dict[str, Any]], None] | None,
    ) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
        """Those of `ids` that have ended, with their metas; and the rest."""
        jobs = {job.id: job for job in read_many(self._ledger, ids)}
        ended, waiting = [], []
        for task_id in ids:
            job = jobs.get(task_id)
            meta = dict(UNKNOWN) if job is None else self._meta_of(job)
            seen = meta["status"], repr(meta["result"])
            if on_message and meta["status"] != states.PENDING and told.get(task_id) != seen:
                told[task_id] = seen
                on_message(meta)
            if job is not None and job.state.is_final:
                ended.append((task_id, meta))
            else:
                waiting.append(task_id)
        return ended, waiting

    def iter_native(self, result: Any, **options: Any) -> Iterator[tuple[str, Any]]:
        """Id and meta of each part of a result set as it ends; a set within it as it is."""
        parts: dict[str, list[Any]] = {}
        for part in result.results or ():
            if isinstance(part, ResultSet):
                yield part.id, part.results  # type: ignore[attr-defined] # as Celery has it
            elif part._cache:  # read already, or applied eagerly
                yield part.id, part._cache
            else:
                parts.setdefault(part.id, []).append(part)
        for task_id, meta in self.get_many(parts, **options):
            for part in parts[task_id]:
                part._maybe_set_cache(meta)
            yield task_id, meta

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
