"""An app of somebody's own, for every command that Celery and Flower have."""

from __future__ import annotations

import sys
import time
from typing import Any

from celery import Celery
from celery.contrib.abortable import AbortableTask

from worker.runtime.install import durable

# Flower asks the current app for results; a test has several apps, and none is current.
app = Celery("commands", set_as_current="pytest" not in sys.modules)
app.conf.update(worker_pool_restarts=True, worker_send_task_events=True, task_send_sent_event=True)
durable(app)


@app.task
def add(x: int, y: int) -> int:
    """A sum."""
    return x + y


@app.task(bind=True, base=AbortableTask)
def slow(self: Any, seconds: float) -> str:
    """Until its time is over, or somebody aborts it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if self.is_aborted():
            return "aborted"
        time.sleep(0.05)
    return "done"
