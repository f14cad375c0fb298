"""What the measurement of recovery runs: one long task, and the stock app beside ours.

Our workers get the task by `WORKER_TASKS`; the stock ones are started with
`celery -A tests.chaos.recovery_app`.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task, shared_task

from worker.runtime.execution import current

#: An hour by default: Celery's users shorten it to get their jobs back sooner. A job that runs for
#: longer is then run a second time, beside the first.
VISIBILITY_TIMEOUT = 5
#: Seconds between two sweeps of a stock worker for messages that are due again: kombu's
#: `unacked_restore_interval` of 10 s by its `unacked_restore_throttle` of 10.
SWEEP = 100.0

app = Celery("stock", set_as_current=False, broker=os.environ.get("REDIS_URL"))
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_transport_options={"visibility_timeout": VISIBILITY_TIMEOUT},
    broker_connection_retry_on_startup=True,  # as 5.x does; unset, it warns
)


def note(folder: str, event: str, **fields: Any) -> None:
    """Append one line to this process's file, as `tests.chaos.history.read` reads them."""
    line = json.dumps({"t": time.monotonic(), "event": event, "pid": os.getpid(), **fields})
    path = Path(folder) / f"hold-{os.getpid()}.jsonl"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(file, line.encode() + b"\n")  # one write: a kill leaves whole lines
    os.close(file)


@shared_task(name="recovery.hold", bind=True)
def hold(self: Task[Any, Any], folder: str, seconds: float = 900.0) -> None:
    """Run until the file `end` or `end-<job>` is in `folder`, at most so long."""
    job, execution = str(self.request.id), current()
    attempt = execution.fence.attempt if execution else None  # stock Celery counts none
    note(folder, "start", job=job, attempt=attempt)
    gates = [Path(folder) / "end", Path(folder) / f"end-{job}"]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not any(gate.exists() for gate in gates):
        time.sleep(0.1)
    note(folder, "end", job=job, attempt=attempt)
