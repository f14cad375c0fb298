"""Tasks that tell of other jobs, or of their own from elsewhere."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from celery import Task, current_app, shared_task
from celery.contrib.abortable import AbortableTask
from celery.exceptions import Ignore

from tests.acceptance.jobs import note


def wait_for(gate: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not Path(gate).exists() and time.monotonic() < deadline:
        time.sleep(0.01)


@shared_task(name="tell.by_thread", bind=True)
def by_thread(self: Task[Any, Any], gate: str) -> str:
    """Tell of itself from a thread of its own."""
    job = self.request.id

    def tell() -> None:
        self.update_state(task_id=job, state="THREAD", meta={"by": "thread"})

    thread = threading.Thread(target=tell)
    thread.start()
    thread.join()
    wait_for(gate)
    return "told"


@shared_task(name="tell.of", bind=True)
def of(self: Task[Any, Any], job: str, state: str) -> str:
    """A subtask: tells of another job."""
    self.update_state(task_id=job, state=state, meta={"by": "subtask"})
    return "told"


@shared_task(name="tell.store")
def store(job: str, state: str) -> str:
    current_app.backend.store_result(job, {"by": "subtask"}, state)
    return "stored"


@shared_task(name="tell.hold")
def hold(log: str, gate: str) -> str:
    note(log, "held")
    wait_for(gate)
    return "held"


@shared_task(name="tell.abortable", bind=True, base=AbortableTask)
def abortable(self: Any, log: str) -> str:
    note(log, "abortable")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if self.is_aborted():
            return "aborted"
        time.sleep(0.02)
    return "not told"


@shared_task(name="tell.ends_itself", bind=True)
def ends_itself(self: Task[Any, Any]) -> None:
    """Celery's own way to end with a result and a state."""
    self.update_state(state="SUCCESS", meta="by itself")  # type: ignore[arg-type] # the result
    raise Ignore
