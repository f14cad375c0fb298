"""What a worker publishes of its tasks: their parameters, for the door to check arguments by."""

from __future__ import annotations

import inspect
from typing import Any

from celery import Celery

from worker.jobs.continuations import CALL_ERRBACKS
from worker.jobs.signature import Parameters, describe


def signatures(app: Celery) -> dict[str, Parameters]:
    """Each of the app's own tasks with its parameters; one that hides them accepts anything."""
    return {
        name: _parameters(task)
        for name, task in app.tasks.items()
        if not name.startswith("celery.") and name != CALL_ERRBACKS
    }


def _parameters(task: Any) -> Parameters:
    if not task.typing:
        return describe(None)
    try:
        return describe(inspect.signature(task.run))
    except (TypeError, ValueError):
        return describe(None)
