"""Strategies: a task class that takes over how its messages are received cannot be durable."""

from __future__ import annotations

from celery import Celery, Task

from worker.errors import ConfigurationError
from worker.runtime.ending import give_up


def refuse_strategies(app: Celery) -> None:
    """End a worker one of whose tasks has a `Strategy` of its own, as those of celery-batches have.

    Celery gives such a task broker messages, to hold and acknowledge as it likes. Here a job is
    claimed, runs, and ends; what a strategy holds back would be in nobody's hands.

    Raises:
        SystemExit: with one sentence on stderr.
    """
    for name, task in sorted(app.tasks.items()):
        strategy = task.Strategy
        if strategy != Task.Strategy:
            give_up(
                ConfigurationError(
                    f"Task {name!r} has a Strategy of its own ({strategy}), which takes messages"
                    " from the broker without a claim: a durable worker does not run it; give it"
                    " to a worker of an app that is not durable, or enqueue the batch as one job."
                )
            )
