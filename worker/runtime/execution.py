"""One attempt while it runs, in the thread or child process that runs it.

Whatever the attempt decides, its end, its retry, what it publishes after its return, is collected
here and travels back to the worker's main process with the return value. There it is written under
the attempt's fence, in one transaction: a stale attempt's links start nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from worker.jobs.job import Ended, Fence, Finish, NewJob, Ring
from worker.jobs.states import State

#: Longest `error` kept, in characters; the traceback has the rest.
ERROR_LIMIT = 2000
TRACEBACK_LIMIT = 100_000
#: Seconds before a job that asked to be rejected and requeued is tried again.
REQUEUE_DELAY = 1.0


@dataclass(slots=True)
class Execution:
    """What an attempt has decided so far.

    Attributes:
        fence: whose attempt it is.
        retry: the message that the task published under its own id: a retry, or a replacement.
        outbox: jobs published between the task's return and its end.
        ended: jobs that its code ended, other than its own.
        ending: True once the task's own code is over: what is published now joins the finish.
        committed: the end, once it is in the ledger: before the worker gets it, for handlers.
        rings: this job's own doorbell, to be pushed once the worker has let go of the attempt.
        is_stale: True once the ledger has refused the end.
        request: what Celery said of the task when it ended.
        errbacks_done: whether Celery has called its errbacks here.
        thread: the thread that runs it, `None` when that is over.
    """

    fence: Fence
    retry: NewJob | None = None
    outbox: list[NewJob] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    ending: bool = False
    committed: Finish | None = None
    rings: tuple[Ring, ...] = ()
    is_stale: bool = False
    request: Any = None
    errbacks_done: bool = False
    thread: int | None = None
    _end: Finish | None = None
    _announced: Finish | None = None
    _retry_error: str | None = None
    _retry_traceback: str | None = None
    _retry_result: tuple[bytes, str] | tuple[None, None] = (None, None)

    def succeed(self, result: bytes | None, result_type: str | None, children: str | None) -> None:
        """The task returned."""
        self._end = Finish(
            self.fence, State.SUCCEEDED, "succeeded", result, result_type, children=children
        )

    def fail(
        self,
        result: bytes | None,
        result_type: str | None,
        error: str,
        traceback: str | None,
        children: str | None = None,
    ) -> None:
        """The task raised; what a success had published is dropped."""
        self.outbox.clear()
        self.ended.clear()
        self.ending, self.errbacks_done = True, False
        self._end = Finish(
            self.fence,
            State.FAILED,
            "failed",
            result,
            result_type,
            error=clean(error, ERROR_LIMIT),
            traceback=clean(traceback, TRACEBACK_LIMIT),
            children=children,
        )

    def cancel(self, reason: str) -> None:
        """The task was revoked."""
        self._end = Finish(
            self.fence, State.CANCELLED, "cancelled", error=clean(reason, ERROR_LIMIT)
        )

    def announce(
        self,
        state: State,
        result: bytes,
        result_type: str,
        error: str | None,
        traceback: str | None,
    ) -> None:
        """The task set a final state by `update_state`; it counts if `Ignore` follows.

        Celery calls no errbacks then.
        """
        self._announced = Finish(
            self.fence,
            state,
            "ignored" if state is State.SUCCEEDED else str(state),
            result,
            result_type,
            error=clean(error, ERROR_LIMIT),
            traceback=clean(traceback, TRACEBACK_LIMIT),
            errbacks_done=True,
        )

    def ignore(self) -> None:
        """The task raised `Ignore`: what it announced is its end, or it ends without a result."""
        if self._announced is None:
            self._end = Finish(self.fence, State.SUCCEEDED, "ignored")
        else:
            self._end = self._announced

    def note_retry(
        self, error: str, traceback: str | None, result: bytes | None = None, result_type: str = ""
    ) -> None:
        """Why the task asks to be tried again; `result` is the encoded exception."""
        self._retry_result = (None, None) if result is None else (result, result_type)
        self._retry_error = clean(error, ERROR_LIMIT)
        self._retry_traceback = clean(traceback, TRACEBACK_LIMIT)

    def give_back(self, reason: str, delay: float = REQUEUE_DELAY) -> None:
        """The task wants somebody to run it again: no failure, no crash."""
        self._end = Finish(
            self.fence,
            State.SCHEDULED,
            "released",
            error=clean(reason, ERROR_LIMIT),
            delay=delay,
        )

    def await_replacement(self) -> None:
        """The task replaced itself by a canvas, whose last step will bring this job's message."""
        self._end = Finish(self.fence, State.SCHEDULED, "replaced", delay=math.inf)

    @property
    def is_decided(self) -> bool:
        """Whether the attempt's end is known."""
        return self._end is not None or self.retry is not None

    @property
    def is_over(self) -> bool:
        """Whether the task's own code is over, and how it ended is not in the ledger yet."""
        ended = self._end is not None or (self.retry is not None and self._retry_error is not None)
        return ended and self.committed is None and not self.is_stale

    def note_ended(self, ended: Ended) -> None:
        """Another job ends with this one: a later step of its chain, say, of which each has the
        same exception and traceback. They are held once, however many steps there are."""
        before = self.ended[-1] if self.ended else None
        if before is not None and before.result == ended.result:
            ended = replace(ended, result=before.result)
        if before is not None and before.traceback == ended.traceback:
            ended = replace(ended, traceback=before.traceback)
        self.ended.append(ended)

    def commit(self, rings: tuple[Ring, ...]) -> None:
        """The end is in the ledger: whatever the handlers do, it stands.

        Args:
            rings: this job's own doorbell, if it is queued again.
        """
        self.committed, self.rings = self.finish(), rings

    def finish(self) -> Finish:
        """What to write. A retry wins over a later return: `retry(throw=False)` means it."""
        if self.committed is not None:
            return self.committed
        if self.retry is not None:
            # The body's own children are rows already; what was to follow a return does not come.
            due = self.retry.is_due
            result, result_type = self._retry_result
            return Finish(
                self.fence,
                State.QUEUED if due else State.SCHEDULED,
                "retried",
                result,
                result_type,
                error=self._retry_error,
                traceback=self._retry_traceback,
                delay=None if due else self.retry.delay,
                replacement=self.retry,
            )
        if self._end is None:
            raise RuntimeError(f"the end of {self.fence} is not known")
        end = self._end
        if self.errbacks_done:
            end = replace(end, errbacks_done=True)
        if not self.outbox and not self.ended:
            return end
        if end.state.is_final or end.outcome == "replaced":
            return replace(end, outbox=tuple(self.outbox), ended=tuple(self.ended))
        return end


_current: ContextVar[Execution | None] = ContextVar("worker_execution", default=None)
#: What runs in this process, for threads that a task has started.
_running: dict[str, Execution] = {}


def current() -> Execution | None:
    """The attempt that this thread runs, if any.

    A context is copied by what the task starts, such as a callback of asyncio, and outlives it in
    other threads: what is published there joins no end, which may be written by then.
    """
    execution = _current.get()
    if execution is None or execution.thread != threading.get_ident():
        return None
    return execution


def execution_of(job_id: str) -> Execution | None:
    """The attempt of this job that this process runs, if any."""
    execution = current()
    if execution is not None and execution.fence.id == job_id:
        return execution
    return _running.get(job_id)


@contextmanager
def running(fence: Fence) -> Iterator[Execution]:
    """Collect what the attempt of `fence` decides during the block."""
    execution = Execution(fence, thread=threading.get_ident())
    token = _current.set(execution)
    before = _running.get(fence.id)  # the worker itself may end what a thread of it runs
    _running[fence.id] = execution
    try:
        yield execution
    finally:
        execution.thread = None
        if before is None:
            _running.pop(fence.id, None)
        else:
            _running[fence.id] = before
        _current.reset(token)


def clean(text: str | None, limit: int) -> str | None:
    """`text` as Postgres can hold it: no NUL, no lone surrogates, at most `limit` characters."""
    if text is None:
        return None
    if not text.isascii() or "\0" in text:
        text = text.replace("\0", "\\0").encode("utf-8", "replace").decode()
    if len(text) <= limit:
        return text
    half = limit // 2 - 10
    return f"{text[:half]}\n… cut …\n{text[-half:]}"
