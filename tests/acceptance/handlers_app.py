"""An app whose handlers ask for the state of their task: here, and in another process meanwhile."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task, current_task, signals
from celery.exceptions import Ignore, Reject
from celery.result import AsyncResult

from worker.runtime import durable

#: Seconds that a handler waits to hear what the other process reads.
PATIENCE = 15.0

app = Celery("handlers", broker=os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
if os.environ.get("SIDE") == "stock":  # to see what it does
    app.conf.update(result_backend=os.environ["REDIS_URL"])
else:
    durable(app)


def ask(handler: str, task_id: str, **more: Any) -> None:
    """Leave what is read here; come back when it was read elsewhere too."""
    seen: Any = AsyncResult(task_id, app=app)
    own = {"state": seen.state, "result": repr(seen.result), "ready": seen.ready()}
    own["traceback"] = bool(seen.traceback)
    folder = Path(os.environ["HANDLERS"])
    asked = folder / f"{handler}-{time.monotonic_ns()}.json"
    asked.with_suffix(".part").write_text(json.dumps([task_id, handler, own, more]))
    asked.with_suffix(".part").rename(asked)
    deadline = time.monotonic() + PATIENCE
    while asked.exists() and time.monotonic() < deadline:
        time.sleep(0.005)


class Hooked(Task):  # type: ignore[type-arg] # not generic at run time
    """A task class with each of Celery's hooks."""

    abstract = True

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        ask("on_success", task_id)

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        ask("on_failure", task_id)

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        ask("on_retry", task_id)

    def after_return(self, status: str, retval: Any, task_id: str, *_: Any) -> None:
        ask("after_return", task_id, state=status)


def work(self: Any, how: str) -> str:
    if how == "fail":
        raise ValueError("no")
    if how == "retry" and not self.request.retries:
        raise self.retry(exc=KeyError("again"), countdown=0.6, max_retries=1)
    if how == "ignore":
        raise Ignore
    if how == "reject":
        raise Reject("not wanted", requeue=False)
    return "done"


hooked = app.task(base=Hooked, bind=True, name="handlers.hooked")(work)
signalled = app.task(bind=True, name="handlers.signalled")(work)
plain = app.task(bind=True, name="handlers.plain")(work)


class Raising(Task):  # type: ignore[type-arg] # not generic at run time
    """A task class whose hook raises: Celery then tells of the failure twice."""

    abstract = True

    def on_failure(self, *_: Any) -> None:
        raise RuntimeError("of the hook")


raising = app.task(base=Raising, bind=True, name="handlers.raising")(work)


@app.task(name="handlers.errback")
def errback(request: Any, exc: Any, traceback: Any) -> None:
    ask("errback", request.id)


@app.task(name="handlers.errback_by_result")
def errback_by_result(task_id: str) -> None:
    ask("errback_by_result", task_id)


@signals.task_success.connect(sender=signalled)
def on_success(sender: Any, **_: Any) -> None:
    ask("task_success", sender.request.id)


@signals.task_failure.connect(sender=signalled)
def on_failure(task_id: str, **_: Any) -> None:
    ask("task_failure", task_id)


@signals.task_retry.connect(sender=signalled)
def on_retry(request: Any, **_: Any) -> None:
    ask("task_retry", request.id)


@signals.task_postrun.connect(sender=signalled)
def on_postrun(task_id: str, state: str, retval: Any, **_: Any) -> None:
    ask("task_postrun", task_id, state=state, retval=type(retval).__name__)


@app.task(name="handlers.follower")
def follower() -> str:
    return str(current_task.request.id)


class Enqueuing(Task):  # type: ignore[type-arg] # not generic at run time
    """A task class whose hook enqueues."""

    abstract = True

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        follower.apply_async(task_id=f"{task_id}-follower")
        ask("on_success", f"{task_id}-follower")


@app.task(base=Enqueuing, name="handlers.enqueues")
def enqueues() -> None:
    """Only its hook does something."""


@signals.task_revoked.connect
def on_revoked(request: Any, terminated: bool, signum: Any, expired: bool, **_: Any) -> None:
    ask("task_revoked", request.id, expired=expired, terminated=terminated)
