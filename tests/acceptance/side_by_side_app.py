"""One Celery app, three ways: stock, stock with late acknowledgement, durable. SIDE says which."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from celery import Celery, shared_task

from worker.runtime import durable

#: The same code for all three; only this mapping differs.
STOCK = {
    "broker_url": os.environ["REDIS_URL"],
    "result_backend": os.environ["DATABASE_URL"].replace(
        "postgresql://", "db+postgresql+psycopg2://"
    ),
    "result_extended": True,
}
LATE = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    # An hour by default, and looked for when a worker starts and then every 100 s. So short, the
    # same is seen within the patience of a measurement.
    "broker_transport_options": {
        "visibility_timeout": 5,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
}

app = Celery("side-by-side")
app.conf.broker_connection_retry_on_startup = True
if os.environ["SIDE"] == "durable":
    durable(app)
else:
    app.conf.update(STOCK)
if os.environ["SIDE"] == "late":
    app.conf.update(LATE)


def note(name: str, word: str) -> None:
    """Append a line to the log of what really ran: no store of the two is asked."""
    line = f"{time.time():.3f} {name} {word} {os.getpid()}\n".encode()
    log = os.open(Path(os.environ["SIDE_LOG"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(log, line)  # one write: lines of several processes do not mix
    os.close(log)


@shared_task(name="side.work")
def work(name: str, seconds: float) -> str:
    """Take a while."""
    note(name, "start")
    time.sleep(seconds)
    note(name, "end")
    return name


@shared_task(name="side.poison")
def poison(name: str) -> None:
    """Kill the process that runs it, as a segmentation fault or the OOM killer does."""
    note(name, "start")
    os.kill(os.getpid(), signal.SIGKILL)
