"""Celery's request for one claimed job: what Celery calls when it starts, ends or dies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery import signals
from celery.exceptions import InvalidTaskError, Reject, TaskRevokedError
from celery.platforms import signals as platform_signals
from celery.worker.request import Request
from celery.worker.state import task_ready
from kombu.utils.encoding import safe_str

from worker.jobs.job import Fence, Finish, Ring
from worker.jobs.states import State
from worker.runtime.claims import Claims, Phase
from worker.runtime.clock import LeaseClock
from worker.runtime.outcome import REJECTED, Kind, Raised, Traced, describe, exception_of
from worker.runtime.panel import revoke_running
from worker.runtime.threads import NoThread
from worker.runtime.tidings import ENDS, Tidings
from worker.runtime.trace import run_claimed

logger = logging.getLogger(__name__)

#: Seconds after which a job comes back that found no thread.
NO_THREAD_PAUSE = 1.0


class ClaimedRequest(Request):  # type: ignore[misc] # Celery's class is not typed
    """A request that runs under a fence and reports to the inventory.

    Acknowledging and rejecting are no-ops: once the claim is committed the message has done its
    duty. Celery's `create_request_cls` is not used, because it bypasses overrides of `on_success`
    and `execute_using_pool`.
    """

    acknowledged = True  # by the claim, and so `inspect active` says
    _is_revoke_told = False

    fence: Fence
    claims: Claims
    clock: LeaseClock
    finish: Callable[[Finish], None]
    settle: Callable[[Fence, Sequence[Ring]], None]
    await_commit: Callable[[Fence], bool]
    tidings: Tidings
    lose: Callable[[ClaimedRequest, str], None]
    lost: int

    @property
    def eventer(self) -> Any:
        """What tells listeners of this job."""
        return self._eventer

    @eventer.setter
    def eventer(self, eventer: Any) -> None:
        # Celery would set its own dispatcher when a connection is back, and the job wait for Redis.
        pass

    def execute_using_pool(self, pool: Any, **kwargs: Any) -> Any:
        """Hand the job to the pool, unless it was revoked or cannot be handed over.

        Raises:
            TaskRevokedError: its finish is on its way; Celery's caller frees the pool's slot.
        """
        try:
            return self._hand_over(pool)
        except TaskRevokedError:
            raise
        except NoThread as exc:
            # The fault is this container's, or it is shutting down: the job may run elsewhere.
            task_ready(self)
            self.finish(
                Finish(
                    self.fence, State.SCHEDULED, "postponed", error=str(exc), delay=NO_THREAD_PAUSE
                )
            )
            raise TaskRevokedError(self.id) from exc
        except Exception as exc:
            # One message that Celery trips over must not stop worker after worker.
            logger.exception("Job %s cannot be started", self.id)
            self.task.backend.mark_as_failure(self.id, InvalidTaskError(describe(exc)))
            raise TaskRevokedError(self.id) from exc

    def _hand_over(self, pool: Any) -> Any:
        if self.revoked():
            raise TaskRevokedError(self.id)
        if not self.clock.may_start(self.fence):
            self._give_back()
            raise TaskRevokedError(self.id)
        if not self.claims.move(self.fence, Phase.HANDED):
            task_ready(self)  # it was given back meanwhile
            raise TaskRevokedError(self.id)
        time_limit, soft_time_limit = self.time_limits
        result = pool.apply_async(
            run_claimed,
            args=(
                self.clock,
                self.fence,
                self.type,
                self.request_dict,
                self.body,
                self.content_type,
                self.content_encoding,
            ),
            accept_callback=self.on_accepted,
            timeout_callback=self.on_timeout,
            callback=self.on_success,
            error_callback=self.on_failure,
            soft_timeout=soft_time_limit or self.task.soft_time_limit,
            timeout=time_limit or self.task.time_limit,
            correlation_id=self.id,
        )
        self._apply_result = None if result is None else ref(result)
        return result

    def send_event(self, type: str, **fields: Any) -> None:
        """Tell listeners; of an end, once the ledger has it."""
        if not self._eventer or not self._eventer.enabled or not self.task.send_events:
            return
        if type in ENDS:
            self.tidings.tell(self.fence, type, fields, self._send)
        else:
            self._send(type, **fields)

    def _send(self, type: str, **fields: Any) -> None:
        if type == "task-revoked":
            if self._is_revoke_told:
                return
            self._is_revoke_told = True
        # Whether events are wanted was asked when it ended: in a drain Celery's dispatcher is gone
        # before the commit.
        self._eventer.send(type, uuid=self.id, **fields)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the job. Where the pool cannot end its code, the code runs on for nothing: the ledger
        refuses its end."""
        try:
            super().terminate(pool, signal)
        except NotImplementedError:
            revoke_running(self, platform_signals.signum(signal or "TERM"))

    def acknowledge(self) -> None:
        """Nothing: the ledger has the job."""

    def reject(self, requeue: bool = False) -> None:
        """Nothing: the ledger has the job."""

    def maybe_expire(self) -> bool:
        """False: the claim has checked it, on the database's clock."""
        return False

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """A thread or child takes the job up."""
        self.claims.move(self.fence, Phase.STARTED, pid)
        super().on_accepted(pid, time_accepted)

    def on_success(self, traced: Any, **kwargs: Any) -> None:
        """The pool is done with the job, however it ended."""
        if not isinstance(traced, Traced):  # an ExceptionInfo: the pool thread itself broke down
            self.on_failure(traced)
            return
        if traced.finish is None:
            self._give_back()
            return
        task_ready(self, successful=not traced.failed)
        if traced.committed is not None:
            self.settle(self.fence, traced.committed)
        else:
            self.finish(traced.finish)
        self._announce(traced)

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        """The pool lost the job: its child died, was terminated, or its answer was unreadable."""
        exc = exception_of(exc_info)
        if self._already_revoked or self._already_cancelled:
            task_ready(self)
            return
        if isinstance(exc, (WorkerLostError, SystemExit, KeyboardInterrupt)):
            task_ready(self)
            self._lose(describe(exc))
            return
        if isinstance(exc, MemoryError):
            # Celery re-raises it and takes the worker down.
            task_ready(self)
            self.finish(
                Finish(
                    self.fence, State.FAILED, "failed", error=describe(exc),
                    traceback=safe_str(exc_info.traceback),
                )
            )  # fmt: skip
            return
        super().on_failure(exc_info, send_failed_event, return_ok)

    def _give_back(self) -> None:
        """It may not be ours any more; if it is, let somebody else run it."""
        task_ready(self)
        self.claims.miss(self.fence)
        self.finish(Finish(self.fence, State.QUEUED, "released", error="not started in the lease"))

    def _lose(self, error: str) -> None:
        """The child died, with this job alone in it: a loss that counts."""
        logger.error("Job %s lost its process: %s", self.id, error)
        self.lose(self, error)
        self.send_event("task-failed", exception=error, traceback="")

    def _announce(self, traced: Traced) -> None:
        """Tell Flower and other listeners what Celery would tell them."""
        value = traced.value
        if not isinstance(value, Raised):
            self.send_event("task-succeeded", result=value, runtime=traced.runtime)
        elif value.kind is Kind.RETRIED:
            self.send_event("task-retried", exception=value.said, traceback=value.traceback)
        elif value.kind is Kind.REJECTED:
            self.send_event("task-rejected", requeue=value.requeue)
            if not value.requeue:
                self._announce_failure(traced, value)
        elif value.kind is Kind.FAILED:
            self.send_event("task-failed", exception=value.said, traceback=value.traceback)

    def _announce_failure(self, traced: Traced, value: Raised) -> None:
        """A task that rejects its message for good has failed. Celery says so in the worker's main
        process, once the failure is stored."""
        self.send_event("task-failed", exception=value.said, traceback=value.traceback)
        if not signals.task_failure.has_listeners(self.task):
            return
        self.await_commit(self.fence)
        reason = (traced.finish.error if traced.finish else "") or ""
        try:
            raise Reject(reason.removeprefix(REJECTED), requeue=False)
        except Reject as rejected:
            exc, einfo = rejected, ExceptionInfo()
        exc.__traceback__, einfo.traceback = None, value.traceback
        signals.task_failure.send(
            sender=self.task, task_id=self.id, exception=exc, args=self.args, kwargs=self.kwargs,
            traceback=value.traceback, einfo=einfo,
        )  # fmt: skip


def received(request: ClaimedRequest, consumer: Any) -> None:
    """Tell Celery's listeners that a job has arrived."""
    signals.task_received.send(sender=consumer, request=request)
    request.send_event(
        "task-received",
        name=request.name,
        args=request.argsrepr,
        kwargs=request.kwargsrepr,
        root_id=request.root_id,
        parent_id=request.parent_id,
        retries=request.request_dict.get("retries", 0),
        eta=request.eta and request.eta.isoformat(),
        expires=request.expires and request.expires.isoformat(),
    )
