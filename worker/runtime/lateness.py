"""A worker that was made before its app became durable is stock Celery's, and claims nothing."""

from __future__ import annotations

import gc
import sys
import threading

from billiard.process import current_process
from celery import Celery

from worker.errors import ConfigurationError
from worker.runtime.ending import give_up


def refuse_late(app: Celery) -> None:
    """Refuse to make `app` durable where it has a worker that Celery has set up already.

    In the worker's own process this ends it: Celery would only log what a handler raises, and go on
    with a consumer that takes doorbells for messages.

    Raises:
        ConfigurationError: elsewhere, as in a child of its pool, or a task.
    """
    if not _has_worker(app):
        return
    error = ConfigurationError(
        "durable() was called when this app's worker was made already; call it where the app is"
        " made, or in a handler of celeryd_init at the latest."
    )
    is_own = threading.current_thread() is threading.main_thread()
    if is_own and current_process().name == "MainProcess":
        give_up(error)
    raise error


def _has_worker(app: Celery) -> bool:
    """Whether a worker of the app has passed the signal by which ours are prepared.

    Celery keeps no list of workers. It sets `options` just before it sends `worker_init`.
    """
    module = sys.modules.get("celery.worker.worker")
    if module is None or not in_worker(app):
        return False
    return any(
        issubclass(type(known), module.WorkController)
        and vars(known).get("app") is app
        and "options" in vars(known)
        for known in gc.get_objects()
    )


def in_worker(app: Celery) -> bool:
    """Whether Celery has begun to set up a worker of the app."""
    loader = vars(app).get("loader")  # made here, it could be another one than the user's
    return bool(getattr(loader, "worker_initialized", False))
