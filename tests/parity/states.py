"""States, as `AsyncResult.state` tells them."""

from __future__ import annotations

import time
import uuid
from typing import Any

from tests.parity.rows import row
from tests.parity.side import PATIENCE, PREFORK, Side


@row("an id that was never sent is PENDING", "PENDING")
def unknown(s: Side) -> Any:
    return s.app.AsyncResult(str(uuid.uuid4())).state


@row("a job in a queue that nobody consumes is PENDING", "PENDING")
def waiting(s: Side) -> Any:
    return s.t.echo.apply_async((1,), queue="nobody").state


@row("a job that waits for its countdown is PENDING", "PENDING")
def counting_down(s: Side) -> Any:
    result = s.t.echo.apply_async((1,), countdown=60)
    state = result.state
    result.revoke()
    return state


@row("a running job is PENDING while task_track_started is off", "PENDING")
def running(s: Side) -> Any:
    gate = s.key()
    result = s.t.hold.delay(gate)
    s.begun(gate)
    state = result.state
    s.open(gate)
    result.get(timeout=PATIENCE)
    return state


@row("a running job of a task with track_started is STARTED", "STARTED")
def tracked(s: Side) -> Any:
    gate = s.key()
    result = s.t.hold_tracked.delay(gate)
    s.begun(gate)
    state = s.state(result, "STARTED")
    s.open(gate)
    result.get(timeout=PATIENCE)
    return state


@row("a STARTED job's info has the worker's host and pid", ["hostname", "pid"])
def tracked_info(s: Side) -> Any:
    gate = s.key()
    result = s.t.hold_tracked.delay(gate)
    s.begun(gate)
    s.state(result, "STARTED")
    info = sorted(result.info or ())
    s.open(gate)
    result.get(timeout=PATIENCE)
    return info


@row("a running job's result and traceback are None", [None, None])
def nothing_yet(s: Side) -> Any:
    gate = s.key()
    result = s.t.hold.delay(gate)
    s.begun(gate)
    seen = [result.result, result.traceback]
    s.open(gate)
    result.get(timeout=PATIENCE)
    return seen


@row("a task that returned is SUCCESS", "SUCCESS")
def succeeded(s: Side) -> Any:
    return s.state(s.t.echo.delay(1), "SUCCESS")


@row("a task that raised is FAILURE", "FAILURE")
def failed(s: Side) -> Any:
    return s.state(s.t.fail.delay(), "FAILURE")


@row("a task that waits for its retry is RETRY", "RETRY")
def retrying(s: Side) -> Any:
    result = s.t.later.delay(2)
    state = s.state(result, "RETRY")
    result.get(timeout=PATIENCE)
    return state


@row("the result in RETRY is the exception that asked for it", ["Trouble", "('later', 0)"])
def retrying_result(s: Side) -> Any:
    result = s.t.later.delay(2)
    s.state(result, "RETRY")
    seen = result.info
    result.get(timeout=PATIENCE)
    return [type(seen).__name__, str(seen)]


@row("a task whose retries are used up is FAILURE", "FAILURE")
def exhausted(s: Side) -> Any:
    return s.state(s.t.hopeless.delay(True), "FAILURE")


@row("a job revoked before it starts is REVOKED", "REVOKED")
def revoked(s: Side) -> Any:
    result = s.t.echo.apply_async((1,), countdown=1)
    result.revoke()
    return s.state(result, "REVOKED")


@row("a running job that is terminated is REVOKED (prefork)", "REVOKED")
def terminated(s: Side) -> Any:
    gate = s.key()
    result = s.t.hold.apply_async((gate,), queue=PREFORK)
    s.begun(gate)
    result.revoke(terminate=True, signal="SIGKILL")
    return s.state(result, "REVOKED")


@row("a job past its expires is REVOKED", "REVOKED")
def expired(s: Side) -> Any:
    return s.state(_expired(s), "REVOKED")


@row(
    "the exception of an expired job says so",
    "expired",
    durable="expired before it was started",
    why="Its text is the reason in the job's row.",
)
def says_expired(s: Side) -> Any:
    return str(s.error(_expired(s)))


def _expired(s: Side) -> Any:
    """The result of a job that its worker found to be expired."""
    queue = f"late-{s.key()}"
    result = s.t.echo.apply_async((1,), queue=queue, expires=0.2)
    late = time.monotonic() + 0.4
    s.until(lambda: time.monotonic() > late)
    s.app.control.add_consumer(queue, destination=[s.threads], reply=True, timeout=3.0)
    s.state(result, "REVOKED")
    s.app.control.cancel_consumer(queue, destination=[s.threads], reply=True, timeout=3.0)
    return result


@row(
    "a task that raises Ignore keeps the state that it had",
    "PENDING",
    durable="SUCCESS",
    why="An accepted job always has an end: one that ignores itself succeeds without a result.",
)
def ignored(s: Side) -> Any:
    return _settled(s, s.t.ignored.delay())


@row("a task that raises Reject is FAILURE", "FAILURE")
def rejected(s: Side) -> Any:
    return _settled(s, s.t.rejected.delay())


@row("a task with acks_late that raises Reject is FAILURE", "FAILURE")
def rejected_late(s: Side) -> Any:
    return _settled(s, s.t.rejected_late.delay())


@row("a state of one's own is read while the task runs", "PROGRESS")
def progress(s: Side) -> Any:
    return _progress(s)[0]


@row("the meta of a state of one's own is its info", {"done": 3, "of": 7})
def progress_info(s: Side) -> Any:
    return _progress(s)[1]


@row("after a state of one's own the end is SUCCESS", "SUCCESS")
def after_progress(s: Side) -> Any:
    return _progress(s)[2]


@row("a state that another process sets while the task runs is read", ["HALFWAY", {"n": 1}])
def from_outside(s: Side) -> Any:
    gate = s.key()
    result = s.t.hold.delay(gate)
    s.begun(gate)
    s.app.backend.store_result(result.id, {"n": 1}, "HALFWAY")
    seen = [result.state, result.info]
    s.open(gate)
    result.get(timeout=PATIENCE)
    return seen


@row("a state that another process sets while the job waits is read", "CHECKED")
def from_outside_waiting(s: Side) -> Any:
    result = s.t.echo.apply_async((1,), queue="nobody")
    s.app.backend.store_result(result.id, None, "CHECKED")
    return result.state


@row("a task that says SUCCESS itself and raises Ignore is SUCCESS", ["SUCCESS", {"said": True}])
def says_success(s: Side) -> Any:
    result = s.t.says_success.delay()
    return [s.state(result, "SUCCESS"), result.result]


@row("a task that says FAILURE itself and raises Ignore is FAILURE", ["FAILURE", "ValueError"])
def says_failure(s: Side) -> Any:
    result = s.t.says_failure.delay()
    return [s.state(result, "FAILURE"), type(result.result).__name__]


@row("a job over its soft time limit is FAILURE (prefork)", ["FAILURE", "SoftTimeLimitExceeded"])
def soft_limit(s: Side) -> Any:
    result = s.t.soft_limited.apply_async(queue=PREFORK)
    return [s.state(result, "FAILURE"), type(result.result).__name__]


@row("a job over its time limit is FAILURE (prefork)", ["FAILURE", "TimeLimitExceeded"])
def hard_limit(s: Side) -> Any:
    result = s.t.hard_limited.apply_async(queue=PREFORK)
    return [s.state(result, "FAILURE"), type(result.result).__name__]


@row("a time limit given with the call counts (prefork)", ["FAILURE", "SoftTimeLimitExceeded"])
def limit_of_the_call(s: Side) -> Any:
    result = s.t.hold.apply_async((s.key(),), queue=PREFORK, soft_time_limit=1)
    return [s.state(result, "FAILURE"), type(result.result).__name__]


@row("a task that calls sys.exit is FAILURE (prefork)", "FAILURE")
def exits(s: Side) -> Any:
    return s.state(s.t.leave.apply_async((3,), queue=PREFORK), "FAILURE")


@row("a job whose result is ignored is PENDING", "PENDING")
def silent(s: Side) -> Any:
    key = s.key()
    result = s.t.silent.delay(key)
    s.notes(f"ran:{key}", 1)
    return _settled(s, result)


@row("a failed job whose result is ignored is PENDING", "PENDING")
def silent_failure(s: Side) -> Any:
    key = s.key()
    result = s.t.silent_failure.delay(key)
    s.notes(f"ran:{key}", 1)
    return _settled(s, result)


@row("a job called with ignore_result=True is PENDING", "PENDING")
def silent_call(s: Side) -> Any:
    return _settled(s, s.t.echo.apply_async((1,), ignore_result=True))


@row("ready() is false before the end and true after", [False, True])
def ready(s: Side) -> Any:
    gate = s.key()
    result = s.t.hold.delay(gate)
    s.begun(gate)
    before = result.ready()
    s.open(gate)
    s.state(result, "SUCCESS")
    return [before, result.ready()]


@row("successful() and failed() of a success", [True, False])
def successful(s: Side) -> Any:
    result = s.t.echo.delay(1)
    s.state(result, "SUCCESS")
    return [result.successful(), result.failed()]


@row("successful() and failed() of a failure", [False, True])
def unsuccessful(s: Side) -> Any:
    result = s.t.fail.delay()
    s.state(result, "FAILURE")
    return [result.successful(), result.failed()]


@row("an abortable task sees that it was aborted", True)
def aborted(s: Side) -> Any:
    from celery.contrib.abortable import AbortableAsyncResult

    gate = s.key()
    sent = s.t.abortable.delay(gate)
    s.begun(gate)
    AbortableAsyncResult(sent.id, app=s.app).abort()
    s.open(gate)
    return sent.get(timeout=PATIENCE)


@row("an abortable task that was not aborted sees so", False)
def not_aborted(s: Side) -> Any:
    gate = s.key()
    sent = s.t.abortable.delay(gate)
    s.begun(gate)
    s.open(gate)
    return sent.get(timeout=PATIENCE)


@row(
    "another process may set a final state of a running job",
    ["", "FAILURE"],
    durable=["Conflict", "PENDING"],
    why="Only the attempt that holds the job records its end; a revoke ends it from outside.",
)
def final_from_outside(s: Side) -> Any:
    gate = s.key()
    result = s.t.hold.delay(gate)
    s.begun(gate)
    raised = s.raised(
        lambda: s.app.backend.store_result(result.id, Exception("so it is"), "FAILURE")
    )
    state = result.state
    s.open(gate)
    return [raised, state]


@row(
    "a state of one's own is kept for an id that was never sent",
    "SENT",
    durable="PENDING",
    why="A state belongs to a job: what is said of an id without one is logged and dropped.",
)
def of_nothing(s: Side) -> Any:
    result = s.app.AsyncResult(str(uuid.uuid4()))
    s.app.backend.store_result(result.id, None, "SENT")
    return result.state


def _progress(s: Side) -> tuple[str, Any, str]:
    gate = s.key()
    result = s.t.progress.delay(gate)
    s.begun(gate)
    state = s.state(result, "PROGRESS")
    info = result.info
    s.open(gate)
    return state, info, s.state(result, "SUCCESS")


def _settled(s: Side, result: Any) -> str:
    """The state of a job once its worker is through with it, by a job sent after it."""
    s.notes(f"signals:{result.id}", 3)  # received, prerun, postrun
    s.t.echo.delay(1).get(timeout=PATIENCE)
    if s.name == "durable":
        s.until(lambda: result.state != "PENDING", 1.0)
    return str(result.state)
