"""An existing Celery app, as a user has it, made durable by one line."""

from __future__ import annotations

from typing import Any

from celery import Celery, Task

from tests.acceptance.jobs import note
from worker.runtime import durable

app = Celery("shop", broker="redis://localhost:6379/0")
app.conf.task_default_queue = "shop"
durable(app)


class OwnBase(Task[Any, Any]):
    """A task class of the user's own, with hooks of its own."""

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        note(args[0], "before_start")

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        note(args[0], "on_success")

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note(args[0], "on_failure")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        note(args[0], "call")
        return super().__call__(*args, **kwargs)


@app.task(base=OwnBase, bind=True, max_retries=1)
def order(self: Task[Any, Any], log: str, retry: bool = False) -> str:
    note(log, f"order-{self.request.retries}")
    if retry and not self.request.retries:
        raise self.retry(countdown=0)
    return "ordered"


@app.task(base=OwnBase)
def broken(log: str) -> None:
    raise RuntimeError("broken")


@app.task(time_limit=1)
def too_long(log: str) -> None:
    import time

    note(log, "too_long")
    time.sleep(30)


@app.task(soft_time_limit=1)
def softly(log: str) -> str:
    import time

    from celery.exceptions import SoftTimeLimitExceeded

    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        return "soft"
    return "hard"
