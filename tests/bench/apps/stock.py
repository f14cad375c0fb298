"""Celery as it comes, on Redis; BENCH_RESULTS says where results go, if anywhere."""

from __future__ import annotations

import os

from celery import Celery

from tests.bench.apps import filling
from tests.bench.apps.filling import Way
from tests.bench.workloads import WORKLOADS

_results = os.environ.get("BENCH_RESULTS")
app = Celery("bench", broker=os.environ["REDIS_URL"], backend=_results)
app.conf.update(
    # Both as whoever cares for the results of his jobs sets them.
    task_acks_late=bool(_results),
    task_track_started=bool(_results),
    task_ignore_result=not _results,
    broker_connection_retry_on_startup=True,
)
for _name, _work in WORKLOADS.items():
    app.task(name=f"bench.{_name}")(_work)


def single(name: str, count: int) -> None:
    """Celery's own `delay`, in a loop."""
    task = app.tasks[f"bench.{name}"]
    for _ in range(count):
        task.delay()


load = single


def stamped(number: int) -> str:
    """Enqueue job `number` of a latency; its id."""
    return str(app.tasks["bench.stamp"].delay(number).id)


if __name__ == "__main__":
    filling.main({"single": Way(1, single)})
